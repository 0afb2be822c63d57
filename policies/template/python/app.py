"""Between the world and policy.py."""

from wit_world import WitWorld as World

import policy
from portcullis import Decision, Request


class WitWorld(World):
    def decide(self, request: Request) -> Decision:
        return policy.decide(request)
