"""Measure speed and memory: BENCHMARKS.md, a section per `bench_<name>.py` of this folder, and BENCHMARKS.json."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from workload import REPOSITORY, Options, get_workload, workload_names

for name, value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(name, value)  # before torch is imported, and for the processes a workload starts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/performance", description=__doc__)
    parser.add_argument("--only", metavar="A,B", help=f"some of: {', '.join(workload_names())}")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=os.environ.get("MCANALYSIS_TRACE_DIR") or None,
        help="TRACE-form tasks for the padding workload (default: $MCANALYSIS_TRACE_DIR, else the embedded tasks)",
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "BENCHMARKS.md", help="the file (BENCHMARKS.md)")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the numbers mean nothing")
    args = parser.parse_args()
    for name in args.only.split(",") if args.only else ():
        if name not in workload_names():
            parser.error(f"unknown workload '{name}', expected some of {', '.join(workload_names())}")
    if args.quick and args.output == parser.get_default("output"):
        parser.error("--quick measures nothing: give --output, so that BENCHMARKS.md is left alone")

    import peers
    import torch
    import transformers
    from raw_numbers import write_raw_numbers
    from report import circumstances, section_text, write_sections
    from timing import recording

    peers.may_install = not args.quick
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = Options(args.data_dir, args.quick, args.output.parent)
    # Where the data lie is nobody's business; that they were given is.
    command = f"python tests/performance --only {args.only}" if args.only else "make bench"
    command = "MCANALYSIS_TRACE_DIR=<folder> " * bool(args.data_dir) + command + " --quick" * args.quick
    here = [n for n in workload_names() if args.quick or torch.cuda.is_available() or not n.startswith("accelerator")]
    failed = []
    for name in args.only.split(",") if args.only else here:  # what an accelerator measured stays where there is none
        sys.stderr.write(f"{name} …\n")
        started = time.monotonic()
        try:
            workload = get_workload(name)
            with recording() as turns:
                section = workload.measure(options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        measured = circumstances(section)
        text = section_text(workload, section, measured, time.monotonic() - started, command)
        sys.stdout.write(text + "\n\n")
        sys.stdout.flush()
        write_sections(args.output, {name: text})  # at once: what is measured is not lost to what fails later
        write_raw_numbers(args.output.with_suffix(".json"), workload, section, measured, turns)
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}; their sections are as they were\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
