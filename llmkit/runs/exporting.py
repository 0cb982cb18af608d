"""The recipe's exports, each in a folder of its own and checked."""

from __future__ import annotations

import os
import shutil

from llmkit.exports.base import Exported, Trained
from llmkit.runs.folder import RunFolder
from llmkit.runs.progress import Narrator
from llmkit.runs.proving.records import record
from llmkit.runs.recovery.manifest import MANIFEST, write_manifest


def export_all(trained: Trained, folder: RunFolder, narrator: Narrator) -> list[Exported]:
    """Write each export to `export/TYPE` in the run folder; raises RunError if one fails its check.

    An export is written beside its place and moved there when its check has passed, so `export/` only ever holds
    models that compute what was trained.
    """
    done = []
    for target in trained.recipe.export:
        kind = target.type
        place = folder.path / "export" / kind
        scratch = place.with_name(f".{kind}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        found = target.export(trained, scratch)
        write_manifest(scratch)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(scratch, place)
        checks = ", ".join(f"{name} {value:.3g}" for name, value in found.checks.items())
        narrator.say(f"exported {kind} to {place} ({checks})")
        done.append(Exported(kind, place, found.checks))
    if done:
        folder.write_json("export.json", [{"type": e.type, "path": str(e.path), "checks": e.checks} for e in done])
        record(folder, *(f"export/{exported.type}/{MANIFEST}" for exported in done))
    return done
