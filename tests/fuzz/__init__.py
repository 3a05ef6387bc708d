"""Fuzzing of everything that reads bytes from outside; `run.py` is what `make fuzz` runs, from the list in `fuzzers.txt`.

A finding lies in `build/fuzzing/TARGET/`. Mend what it shows and keep it as `regressions/TARGET/WHAT-WAS-WRONG`, which
`test_replay.py` runs from then on. After a long run, `run.py --minimise` makes the corpora anew from what it has reached.
"""
