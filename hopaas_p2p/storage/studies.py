"""Studies: created, found, described, deleted."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy

from hopaas_p2p.core import records
from hopaas_p2p.core.catalog import Listing, checked_name
from hopaas_p2p.core.records import StudyClose, StudyDefine, StudyOpen, StudySet
from hopaas_p2p.core.state import REFUSALS, State, Verdict
from hopaas_p2p.errors import Denied, InvalidInput
from hopaas_p2p.storage.part import Part, Parts
from hopaas_p2p.translate import attributes, directions_of, to_json

_NO_NAME: Final = "no-name-"  # Optuna's prefix for studies without a name
_AT_ONCE: Final = 8  # studies that are read together


class Studies(Parts):
    """The side of the storage that is about whole studies."""

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        names = tuple([direction.name.lower() for direction in directions])
        return self.define_study(
            StudyDefine(
                _NO_NAME + secrets.token_hex(16) if study_name is None else study_name, names, self._options.policy
            )
        )

    def define_study(self, define: StudyDefine) -> int:
        """Create a study with policy and search space; returns its id.

        Raises:
            DuplicatedStudyError: the name is taken.
            InvalidInput: no name that a study may carry.
        """
        checked_name(define.name)
        self._refresh_catalog()
        if define.name in self.courier.catalog.replica.state.by_name:
            raise DuplicatedStudyError(f"A study named {define.name!r} exists already in {self.url}.")
        uuid = secrets.token_hex(16)
        membership = self.courier.membership(-1, uuid)
        self.courier.settle(membership, membership.replica.put(self.courier.uuid, define))
        verdict = self.courier.commit_to_catalog(StudyOpen(uuid, define.name))
        if not verdict.accepted or verdict.number is None:
            self._forget(uuid)
            raise DuplicatedStudyError(f"A study named {define.name!r} exists already in {self.url}.")
        membership.study_id = verdict.number
        self._parts[verdict.number] = Part(membership, self._new_view(verdict.number))
        return verdict.number

    def _forget(self, uuid: str) -> None:
        membership = self.courier.memberships.pop(uuid, None)
        if membership is not None:
            membership.deleted = True
            membership.replica.log.destroy()

    def delete_study(self, study_id: int) -> None:
        listing = self._listing(study_id)
        verdict = self.courier.commit_to_catalog(StudyClose(listing.uuid))
        self._parts.pop(study_id, None)
        if not verdict.accepted:
            raise KeyError(f"No study with study_id {study_id} exists.")
        self.courier.membership(study_id, listing.uuid)
        self._forget(listing.uuid)

    def get_study_id_from_name(self, study_name: str) -> int:
        self._refresh_catalog()
        listing = self.courier.catalog.replica.state.by_name.get(study_name)
        if listing is None:
            raise KeyError(f"No study named {study_name!r} in {self.url}.")
        return listing.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._listing(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        part = self._parts.get(study_id) or self._read(study_id)
        if part.replica.state.define is None:
            part = self._read(study_id)
        return directions_of(part.replica.state)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return attributes(self._read(study_id).replica.state.user)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return attributes(self._read(study_id).replica.state.system)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.courier.commit(self.part(study_id).membership, StudySet(user={str(key): to_json(key, value)}))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.courier.commit(self.part(study_id).membership, StudySet(system={str(key): to_json(key, value)}))

    def study_names(self) -> list[str]:
        """The names that are taken, also by studies that this user may not see. Reads the catalog, and no study."""
        self._refresh_catalog()
        return list(self.courier.catalog.replica.state.by_name)

    def get_all_studies(self) -> list[FrozenStudy]:
        self._refresh_catalog()
        catalog = self.courier.catalog.replica
        listings = list(catalog.state.by_id.values())
        if catalog.crowded is None or len(listings) < 2:
            found = [self._frozen_study(listing) for listing in listings]
        else:  # a bucket answers many at once, and each takes a while
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                found = list(threads.map(self._frozen_study, listings))
        return [frozen for frozen in found if frozen is not None]

    def _frozen_study(self, listing: Listing) -> FrozenStudy | None:
        try:
            state = self._read(listing.study_id).replica.state
        except Denied:  # somebody else's study
            return None
        if state.define is None:
            return None
        return FrozenStudy(
            study_name=listing.name,
            direction=None,
            directions=directions_of(state),
            user_attrs=attributes(state.user),
            system_attrs=attributes(state.system),
            study_id=listing.study_id,
        )

    def say(self, study_id: int, record: records.StudyRecord) -> Verdict:
        """Write one record and wait for its verdict.

        Raises:
            Denied: the store's grants do not allow it.
            InvalidInput: it was refused, for example a stop of a trial that ended meanwhile.
        """
        (verdict,) = self.courier.commit(self.part(study_id).membership, record)
        if verdict.refusal == "role":
            raise Denied(
                "Only an owner of the study may do that. Ask one for a grant: hopaas-p2p grant STUDY USER owner"
            )
        if not verdict.accepted:
            raise InvalidInput(REFUSALS.get(verdict.refusal or "", verdict.refusal))
        return verdict

    def state(self, study_id: int) -> State:
        """The replica's State, as fresh as a read may expect."""
        return self._read(study_id).replica.state

    def someone_may_be_dead(self, study_id: int) -> bool:
        """Whether the owner of some running trial was not seen beating lately."""
        return self.courier.someone_may_be_dead(self.part(study_id).membership)
