"""From run folders to numbers one may believe: load, scores, statistics, verify, claims, figures, report.

Nothing here imports torch, gymnasium or the algorithms: results can be analysed on a machine that cannot train.
"""
