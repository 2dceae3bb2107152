"""Limits that the two sides share, each enforced where data enters.

The same numbers stand in ``crates/limits``, and for people in ``docs/limits.md``; a test compares the three.
"""

from __future__ import annotations

#: Bytes of the result of one step, as JSON.
RESULT_JSON = 16 << 10
#: Nesting of lists and mappings in it.
RESULT_DEPTH = 60
#: Elements of an output that steps map over: the index of it takes 40 bytes for each, in one record.
MAPPED_ELEMENTS = 1_000_000
#: Bytes of the results of one run that are kept in memory; the others are read from the journal when somebody asks.
RESULTS_KEPT = 32 << 20
#: Bytes of results of all earlier runs together whose outputs are offered to a new run, unless it asks for another number.
EARLIER_RESULTS = 8 << 20

#: Bytes of a segment of a journal, of its header, and its records.
SEGMENT = 64 << 20
SEGMENT_HEADER = 64 << 10
SEGMENT_RECORDS = 1_000_000
#: Nesting of one field of a record.
RECORD_DEPTH = 64
#: Values of the results in a record that closes a run.
FINAL_VALUES = 1_000_000
#: Bytes of the results that a run ends with, as JSON.
CLOSING_RESULTS = 32 << 20
