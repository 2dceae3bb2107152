"""Compare a result of examples/flights.yaml with the same figures worked out directly in pandas.

    daskade run examples/flights.yaml -o json | PYTHONPATH=examples/flights python tests/e2e/check_flights.py

Counts and delays are computed here from the raw tables in another way (no join by month, no functions of the
example). The model is trained by the example's own functions in this one process, without daskade: what is compared
there is that splitting, storing and moving the data changed nothing.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import delays


def expected_rows() -> list[dict[str, Any]]:
    """Flights, cancellations and delays by carrier, from the flights table alone."""
    flights = pd.read_csv(delays.data_file("flights.csv.zip"), usecols=["carrier", "arr_delay"])
    table = flights.groupby("carrier")["arr_delay"].agg(["size", "count", "mean"])
    late = flights.assign(late=flights["arr_delay"] > 15).groupby("carrier")["late"].mean()
    return [
        {
            "carrier": name,
            "flights": int(row["size"]),
            "cancelled": int(row["size"] - row["count"]),
            "mean_delay": round(float(row["mean"]), 3),
            "late_share": round(float(late[name]), 4),
        }
        for name, row in table.sort_index().iterrows()
    ]


def expected_score(rounds: int, seed: int) -> dict[str, Any]:
    """Errors of the model, trained on one table made in one go."""
    flights = delays.load_flights()
    weather, planes = delays.load_weather(), delays.load_planes()
    months = [delays.join_month(flights, weather, planes, month) for month in range(1, 13)]
    table = delays.features(months, delays.carriers_of(months))
    score: dict[str, Any] = delays.evaluate(delays.train(table, rounds, seed), table)
    return score


def differences(report: dict[str, Any], rounds: int = 60, seed: int = 0) -> list[str]:
    """What in a report differs from the figures worked out here."""
    found = []
    score = expected_score(rounds, seed)
    rows = {row["carrier"]: row for row in report["carriers"]}
    wanted = expected_rows()
    if sorted(rows) != [row["carrier"] for row in wanted]:
        return [f"carriers {sorted(rows)}"]
    for row in wanted:
        row["mae"] = score["by_carrier"][row["carrier"]]
        found += compare(f"carrier {row['carrier']}", rows[row["carrier"]], row)
    found += compare("model", report["model"], {key: score[key] for key in ("rows", "mae", "baseline_mae")})
    if report["flights"] != 336776:
        found.append(f"{report['flights']} flights")
    if not report["model"]["mae"] < report["model"]["baseline_mae"]:
        found.append("the model is no better than the median")
    return found


def compare(what: str, found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Fields that differ by more than the rounding."""
    if sorted(found) != sorted(wanted):
        return [f"{what} has {sorted(found)}, expected {sorted(wanted)}"]
    return [
        f"{what}: {key} is {found[key]!r}, expected {value!r}"
        for key, value in wanted.items()
        if (not math.isclose(found[key], value, abs_tol=0.0015) if isinstance(value, float) else found[key] != value)
    ]


def main() -> int:
    """Read the command's JSON from standard input or a file; 0 if everything agrees."""
    text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else sys.stdin.read()
    found = differences(json.loads(text)["results"]["report"])
    for line in found:
        print(line)
    print("differs" if found else "agrees")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
