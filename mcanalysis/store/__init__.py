"""What makes a run resumable and a result traceable: measurements, manifest, hashes, atomic writes."""
