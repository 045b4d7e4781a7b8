"""Which positions stand in which group of a Hierarchical Perceiver. Imports no torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """Positions of all modalities in groups of one size.

    Several groups: a modality fills its groups in order, `filled` positions each; the rest of each group, and of what
    the modality leaves of its last groups, is padding. Image of 7 and label of 2 positions in 4 groups of 3:

        image 0 1 2 | image 3 4 5 | image 6 - - | label 0 1 -

    One group: all modalities one after the other, without padding.
    """

    positions: dict[str, int]
    """Of each modality, in the order of the groups."""
    groups: dict[str, int]
    """Groups of each modality."""
    num_groups: int
    """Groups of all modalities together."""
    size: int
    """Positions of a group."""

    @property
    def concatenated(self) -> bool:
        """Whether one group holds all modalities."""
        return self.num_groups == 1

    def filled(self, modality: str) -> int:
        """Positions that a modality has in each of its groups, but for the last ones."""
        return math.ceil(self.positions[modality] / self.groups[modality])


def group_layout(positions: dict[str, int], num_groups: int) -> GroupLayout:
    """Divide groups among modalities so that the fullest group is as small as it can be.

    As in the reference: each modality gets a group, and each further group goes to the modality that has most positions
    a group, the first of them where several have (`assign_groups_to_modalities`, `ConstNumGrouper`).

    Also as in the reference: groups may hold nothing but padding, of a modality that does not fill its groups.

    Differs from the reference: one group may hold several modalities, which is its `ConcatenateGrouper`.

    Raises:
        ValueError: Fewer groups than modalities.
    """
    if len(positions) > num_groups > 1:
        raise ValueError(
            f"{len(positions)} modalities ({', '.join(positions)}) need {len(positions)} groups, got {num_groups}: "
            "a group holds one modality, unless there is one group alone, which holds them all"
        )
    if num_groups == 1:
        total = sum(positions.values())
        return GroupLayout(positions=positions, groups=dict.fromkeys(positions, 1), num_groups=1, size=total)
    groups = dict.fromkeys(positions, 1)
    for _ in range(num_groups - len(positions)):
        fullest = max(positions, key=lambda name: positions[name] / groups[name])
        groups[fullest] += 1
    size = max(math.ceil(positions[name] / groups[name]) for name in positions)
    return GroupLayout(positions=positions, groups=groups, num_groups=num_groups, size=size)
