//! Deaths of replicas: starts that end without an order to stop, and whether the next start is
//! expected to end the same way.

use std::path::Path;
use std::time::Duration;

use super::{epoch_time, output};
use crate::act::targets::StartFailure;
use crate::supervisor::Report;

/// Failed starts in a row from which on the next one is expected to fail too.
const IN_A_ROW: u32 = 3;

/// The longest line of output that is kept, in characters.
const LONGEST_LINE: usize = 300;

/// The end of a start without an order to stop.
pub(super) struct Death {
    /// The predicate of a sentence about the replica, without names of files.
    reason: String,
    /// More about it; may be empty.
    detail: String,
    /// The length of the log before the start, if it wrote one.
    log_from: Option<u64>,
    /// No later start can succeed, as far as is known.
    lasting: bool,
}

impl Death {
    /// The end that the supervisor reported.
    pub(super) fn reported(report: &Report, log_from: u64) -> Self {
        let (reason, detail) = match report {
            Report::NotStarted(why) => ("could not be started".to_owned(), why.clone()),
            Report::Started(_) | Report::Exited(_) | Report::Killed(_) => {
                (report.sentence(), String::new())
            }
        };
        Self { reason, detail, log_from: Some(log_from), lasting: report.is_lasting() }
    }

    /// The end of a start that was replaced for this reason. A start that took longer than its limit
    /// has had its time: the next one is expected to take as long.
    pub(super) fn replaced(reason: String, log_from: u64) -> Self {
        Self { reason, detail: String::new(), log_from: Some(log_from), lasting: true }
    }

    /// It was killed together with its supervisor.
    pub(super) fn with_supervisor(log_from: u64) -> Self {
        let reason = "was killed with its supervisor".to_owned();
        Self { reason, detail: String::new(), log_from: Some(log_from), lasting: false }
    }

    /// There was no process at all.
    pub(super) fn unborn(error: &std::io::Error) -> Self {
        let reason = "could not be started".to_owned();
        Self { reason, detail: error.to_string(), log_from: None, lasting: false }
    }

    /// The reason with its detail.
    pub(super) fn why(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.clone(),
            detail => format!("{}: {detail}", self.reason),
        }
    }

    /// The failure of the pool's starts, if the start after a `pause` is expected to fail too.
    /// `failed_starts`: those in a row, this one included.
    pub(super) fn start_failure(
        &self,
        failed_starts: u32,
        log: &Path,
        pause: Duration,
    ) -> Option<StartFailure> {
        if failed_starts < IN_A_ROW && !(self.lasting && failed_starts > 0) {
            return None;
        }
        let detail = match self.detail.as_str() {
            "" => self.log_from.map(|from| last_line(log, from)).unwrap_or_default(),
            detail => detail.to_owned(),
        };
        let next_try = Some(epoch_time() + pause.into());
        Some(StartFailure { reason: self.reason.clone(), detail, next_try })
    }

    /// The end of the replica's output, as the end of a log message.
    pub(super) fn last_output(&self, log: &Path) -> String {
        let Some(from) = self.log_from else { return String::new() };
        match output::last_lines(log, from) {
            Ok(lines) if lines.is_empty() => format!("; it wrote nothing to {}", log.display()),
            Ok(lines) => format!("; the last lines of {}:{lines}", log.display()),
            Err(error) => format!("; can't read {}: {error}", log.display()),
        }
    }
}

/// The last line of the output that has text in it.
fn last_line(log: &Path, from: u64) -> String {
    let lines = output::last_lines(log, from).unwrap_or_default();
    let line = lines.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(LONGEST_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_failed_start_in_a_row_counts_and_a_missing_program_at_once() {
        let missing = Report::NotStarted("vllm: not found".into());
        let short = Report::NotStarted("vllm: Resource temporarily unavailable".into());
        for (report, failed_starts, fails) in [
            (&Report::Exited(1), 1, false),
            (&Report::Exited(1), 2, false),
            (&Report::Exited(1), 3, true),
            (&short, 1, false),
            (&missing, 1, true),
            // It was ready: the end of a replica that served is not a failed start.
            (&missing, 0, false),
            (&Report::Exited(1), 0, false),
        ] {
            let death = Death::reported(report, 0);
            let pause = Duration::from_secs(4);
            let failure = death.start_failure(failed_starts, Path::new("/dev/null"), pause);
            assert_eq!(failure.is_some(), fails, "{report}, {failed_starts}");
        }
    }

    #[test]
    fn a_start_that_took_too_long_is_a_failure_and_a_replica_that_hangs_is_not() {
        let death = Death::replaced("was not healthy within 60 s".into(), 0);
        let failure = |failed_starts| {
            death.start_failure(failed_starts, Path::new("/dev/null"), Duration::ZERO)
        };
        assert_eq!(failure(1).expect("a failure").reason, "was not healthy within 60 s");
        assert_eq!(failure(0), None, "it was ready before");
    }

    #[test]
    fn a_failure_names_no_file_but_in_its_detail() {
        let death = Death::reported(&Report::NotStarted("/opt/vllm: not found".into()), 0);
        let failure = death.start_failure(1, Path::new("/dev/null"), Duration::ZERO);
        let failure = failure.expect("a failure");
        assert_eq!(failure.reason, "could not be started");
        assert_eq!(failure.detail, "/opt/vllm: not found");
        assert_eq!(death.why(), "could not be started: /opt/vllm: not found");
    }

    #[test]
    fn the_detail_is_the_last_line_with_text() {
        let log = std::env::temp_dir().join(format!("forebay-death-{:x}", rand::random::<u64>()));
        std::fs::write(&log, "before\nloading\nValueError: no such model\n  \n").expect("written");
        assert_eq!(last_line(&log, 7), "ValueError: no such model");
        std::fs::write(&log, "x".repeat(4000)).expect("written");
        assert_eq!(last_line(&log, 0).len(), LONGEST_LINE);
        std::fs::remove_file(&log).expect("there");
        assert_eq!(last_line(&log, 0), "");
    }
}
