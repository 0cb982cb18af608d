"""A file of rows that grows batch by batch, and the ledger beside it, by which a later command goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.errors import DataError, RecipeError
from llmkit.runs.keeping import Tally
from llmkit.runs.progress import Narrator


class Written:
    """The rows that are written, and the ledger beside them: the settings, how far the file goes, and the tally."""

    def __init__(self, path: Path, settings: dict[str, Any], prompts: int) -> None:
        self.path, self.ledger = path, path.with_name(f"{path.name}.ledger")
        # As it will be read back: tuples become lists.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self.tally = Tally(prompts=prompts)
        self.size = 0
        self.digest = hashlib.sha256()

    def go_on(self, narrator: Narrator) -> None:
        """Take up what an earlier call left; raises DataError or RecipeError where it can't be gone on with."""
        if not self.ledger.exists():
            if self.path.exists():
                raise DataError(f"{self.path} exists already, and is not overwritten")
            self._keep_ledger()
            return
        known = json.loads(self.ledger.read_text(encoding="utf-8"))
        tally = Tally.from_dict(known["tally"])
        if not tally.done:
            # Nothing came of the earlier call, so there is nothing to keep to.
            self.path.unlink(missing_ok=True)
            self._keep_ledger()
            return
        self._require_same(known["settings"])
        self.tally, self.size = tally, int(known["bytes"])
        found = self.path.read_bytes() if self.path.exists() else b""
        self.digest.update(found[: self.size])
        if len(found) < self.size or self.digest.hexdigest() != known["sha256"]:
            raise DataError(
                f"{self.path} has been changed since it was written, so that nothing can be added to it",
                remedy=f"Choose another --out, or remove it together with {self.ledger.name} to start over.",
            )
        if len(found) > self.size:
            # Its batch was not through when the command was stopped; it will be sampled again.
            os.truncate(self.path, self.size)
        narrator.say(f"{self.path}: {self.tally.done} of {self.tally.prompts} prompts are there already")

    def _require_same(self, before: Mapping[str, Any]) -> None:
        changed = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if changed:
            told = ", ".join(
                f"{name} was {before.get(name)} and is {self.settings.get(name)}"
                if isinstance(before.get(name), int | float | str) and name != "rows"
                else f"other {name}"
                for name in changed
            )
            raise RecipeError(
                f"{self.path} was begun with other settings: {told}",
                remedy="Give the same ones to go on with it, or choose another --out.",
            )

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the rows of a batch, then say in the ledger that they are there."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with self.path.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(text)
        self.digest.update(text)
        self._keep_ledger()

    def _keep_ledger(self) -> None:
        known = {"tally": self.tally.to_dict(), "settings": self.settings}
        scratch = self.ledger.with_name(f".{self.ledger.name}.tmp")
        values = {**known, "bytes": self.size, "sha256": self.digest.hexdigest()}
        scratch.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(scratch, self.ledger)
