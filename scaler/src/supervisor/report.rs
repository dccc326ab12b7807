//! Reports from a supervisor to Forebay, a line each.

use std::fmt;
use std::str::FromStr;

use forebay_signals::ProcessEnd;
use nix::sys::signal::Signal;

/// Ends of the reason for a program that can't be started now or later.
pub(super) const NOT_FOUND: &str = "not found";
pub(super) const NOT_ALLOWED: &str = "not allowed to run it";

/// One line on the tether.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// COMMAND runs with this PID.
    Started(i32),
    /// COMMAND could not be started.
    NotStarted(String),
    /// COMMAND exited with this status, and nothing of it is left.
    Exited(i32),
    /// COMMAND was killed by this signal, and nothing of it is left.
    Killed(i32),
}

impl Report {
    /// The kind of COMMAND's end, if the report says whether it was ordered.
    pub(crate) fn end(&self) -> Option<ProcessEnd> {
        match self {
            Self::Started(_) | Self::NotStarted(_) => None,
            Self::Exited(code) => ProcessEnd::of_status(*code),
            Self::Killed(signal) => ProcessEnd::of_status(128 + signal),
        }
    }

    /// Whether COMMAND can't be started later either: its program does not exist, or may not be run.
    pub(crate) fn is_lasting(&self) -> bool {
        let lasting = |why: &String| why.ends_with(NOT_FOUND) || why.ends_with(NOT_ALLOWED);
        matches!(self, Self::NotStarted(why) if lasting(why))
    }

    /// The report as the predicate of a sentence about the replica.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Self::Started(pid) => format!("runs as process {pid}"),
            Self::NotStarted(why) => format!("could not be started: {why}"),
            Self::Exited(code) => format!("exited with status {code}"),
            Self::Killed(signal) => match Signal::try_from(*signal) {
                Ok(signal) => format!("was killed by {signal}"),
                Err(_) => "was killed by a signal".into(),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started(pid) => write!(f, "started {pid}"),
            Self::NotStarted(why) => write!(f, "failed {}", why.replace('\n', " ")),
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Killed(signal) => write!(f, "killed {signal}"),
        }
    }
}

impl FromStr for Report {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let (kind, rest) = line.split_once(' ').ok_or(())?;
        let number = || rest.parse().map_err(drop);
        match kind {
            "started" => number().map(Self::Started),
            "failed" => Ok(Self::NotStarted(rest.into())),
            "exited" => number().map(Self::Exited),
            "killed" => number().map(Self::Killed),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        for report in [
            Report::Started(17),
            Report::NotStarted("vllm: not found".into()),
            Report::Exited(1),
            Report::Killed(9),
        ] {
            assert_eq!(report.to_string().parse(), Ok(report));
        }
    }

    #[test]
    fn a_program_that_does_not_exist_or_may_not_be_run_is_a_lasting_failure() {
        for (report, lasting) in [
            (Report::NotStarted(format!("vllm: {NOT_FOUND}")), true),
            (Report::NotStarted(format!("/etc: {NOT_ALLOWED}")), true),
            (Report::NotStarted("vllm: Resource temporarily unavailable".into()), false),
            (Report::Exited(127), false),
        ] {
            assert_eq!(report.is_lasting(), lasting, "{report}");
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["", "started", "started x", "exited ", "else 1"] {
            assert_eq!(line.parse::<Report>(), Err(()), "{line:?}");
        }
    }

    #[test]
    fn an_end_by_sigterm_or_sigint_is_an_order_and_others_are_crashes() {
        let (stopped, crashed) = (Some(ProcessEnd::Stopped), Some(ProcessEnd::Crashed));
        for (report, end) in [
            (Report::Killed(Signal::SIGTERM as i32), stopped),
            (Report::Killed(Signal::SIGINT as i32), stopped),
            (Report::Exited(143), stopped),
            (Report::Killed(Signal::SIGSEGV as i32), crashed),
            (Report::Killed(Signal::SIGABRT as i32), crashed),
            (Report::Killed(Signal::SIGKILL as i32), crashed),
            (Report::Exited(137), crashed),
            (Report::Exited(1), crashed),
            (Report::Exited(0), None),
            (Report::Started(7), None),
        ] {
            assert_eq!(report.end(), end, "{report}");
        }
    }

    #[test]
    fn a_report_reads_as_a_sentence() {
        assert_eq!(Report::Exited(1).sentence(), "exited with status 1");
        assert_eq!(Report::Killed(9).sentence(), "was killed by SIGKILL");
        assert_eq!(Report::Killed(0).sentence(), "was killed by a signal");
    }
}
