//! What is wrong with what makes runs.

use jiff::Timestamp;

use super::moments::Timing;
use api::PipelineSpec;
use api::problem::Problem;
use api::reason::Reason;

/// Checks the schedule of a Pipeline whose spec is at `at` (`spec`). What the schema says as well is said again, since
/// objects may be older than it.
pub fn validate(spec: &PipelineSpec, at: &str) -> Vec<Problem> {
    let Some(schedule) = &spec.schedule else { return Vec::new() };
    let at = format!("{at}.schedule");
    let mut problems = Vec::new();
    for (given, field, needed) in [
        (schedule.start.is_some() && schedule.interval.is_none(), "start", "interval"),
        (schedule.time_zone.is_some() && schedule.cron.is_none(), "timeZone", "cron"),
    ] {
        if given {
            problems.push(Problem::new(
                Reason::Conflict,
                format!("{at}.{field}"),
                format!("{field} belongs to {needed}"),
            ));
        }
    }
    // When it was made is of no importance to whether it has moments.
    if let Err(error) = Timing::read(schedule, Timestamp::UNIX_EPOCH) {
        let (reason, path) = match error.field {
            "" => (Reason::Conflict, at),
            field => (Reason::InvalidValue, format!("{at}.{field}")),
        };
        let problem = Problem::new(reason, path, error.message);
        problems.push(match error.help {
            Some(help) => problem.help(help),
            None => problem,
        });
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn problems_have_their_path() {
        let check = |schedule: serde_json::Value| {
            let spec = serde_json::from_value(json!({"steps": [], "schedule": schedule})).unwrap();
            validate(&spec, "spec").iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(check(json!({"cron": "0 2 * * *", "timeZone": "Europe/Berlin"})), [""; 0]);
        assert_eq!(
            check(json!({"cron": "0 0 30 2 *"})),
            [
                "spec.schedule.cron: InvalidValue: it never comes: there is no such date (no month that it names has such a day)"
            ]
        );
        assert_eq!(
            check(json!({"interval": "1h", "timeZone": "UTC"})),
            ["spec.schedule.timeZone: Conflict: timeZone belongs to cron"]
        );
        assert_eq!(check(json!({})), ["spec.schedule: Conflict: give exactly one of cron and interval"]);
    }
}
