"""The world model as an environment: Gymnasium's vector and single faces, and SB3's."""

from adv_worldmodel.envs.single import AdvWorldModelEnv
from adv_worldmodel.envs.vector import AdvWorldModelVectorEnv

__all__ = ["AdvWorldModelEnv", "AdvWorldModelVectorEnv"]
