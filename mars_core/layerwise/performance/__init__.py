"""HyDRA's performance model: from the ranks of all layers to what a run with them ends at, and schedules by it.

| symbol | meaning | shape |
|---|---|---|
| n | schedules that were trained | |
| T | blocks of all modules, one token each | |
| F | components that a block may have, and one for the module | |
| m | metrics of a run | |
"""
