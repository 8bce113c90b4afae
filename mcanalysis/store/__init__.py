"""What makes a run resumable and a result traceable: measurements, manifest, hashes, atomic writes."""

from mcanalysis.store.atomic import (
    plain_json,
    recover_directory,
    replace_directory_atomic,
    write_json_atomic,
    write_text_atomic,
)
from mcanalysis.store.hashing import hash_file, hash_files, hash_json
from mcanalysis.store.manifest import (
    claim_run_directory,
    mark_finished,
    new_manifest,
    read_manifest,
    write_manifest,
)
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore

__all__ = [
    "Measurement",
    "MeasurementKey",
    "MeasurementStore",
    "claim_run_directory",
    "hash_file",
    "hash_files",
    "hash_json",
    "mark_finished",
    "new_manifest",
    "plain_json",
    "read_manifest",
    "recover_directory",
    "replace_directory_atomic",
    "write_json_atomic",
    "write_manifest",
    "write_text_atomic",
]
