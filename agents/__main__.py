"""`python -m agents` is the `adv-worldmodel` command."""

from agents.cli import main

raise SystemExit(main())
