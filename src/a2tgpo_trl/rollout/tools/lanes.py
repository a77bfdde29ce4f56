"""Who has to wait for whom."""

from collections import deque
from collections.abc import Hashable
from typing import Protocol


class Member(Protocol):
    lanes: list[Hashable]


class Lanes:
    """
    Lanes in which one goes at a time, in the order of arrival.

    A member may be in several lanes, and goes when it is the first in all of them. As it enters all of them at once, no
    two wait for each other.
    """

    def __init__(self):
        self._queues: dict[Hashable, deque[Member]] = {}

    def enter(self, member: Member) -> bool:
        """Queue up. Returns whether the member may go at once."""
        for lane in member.lanes:
            self._queues.setdefault(lane, deque()).append(member)
        return self._may_go(member)

    def leave(self, member: Member) -> list[Member]:
        """Make room, wherever the member stood. Returns who may go now."""
        successors = []
        for lane in member.lanes:
            members = self._queues[lane]
            was_first = members[0] is member
            members.remove(member)
            if not members:
                del self._queues[lane]
            elif was_first and members[0] not in successors:
                successors.append(members[0])
        return [successor for successor in successors if self._may_go(successor)]

    def behind(self, member: Member, lane: Hashable) -> list[Member]:
        """Those who wait in a lane in which the member is the first."""
        return list(self._queues[lane])[1:]

    def _may_go(self, member: Member) -> bool:
        return all(self._queues[lane][0] is member for lane in member.lanes)
