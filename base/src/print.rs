//! Printing for commands that end: what `println!` and `eprintln!` do, without their panics.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Prints to standard output. A reader that has read enough and left, as `head` does, is not an
/// error.
///
/// # Errors
/// It can't be written for another reason, such as a full disk.
pub fn out(text: impl Display) -> io::Result<()> {
    write(io::stdout().lock(), text)
}

/// Prints a line to standard error. An error is ignored: there is no other place to report it.
pub fn err(line: impl Display) {
    let _ = write(io::stderr().lock(), format_args!("{line}\n"));
}

fn write(mut to: impl Write, text: impl Display) -> io::Result<()> {
    match write!(to, "{text}").and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_not_an_error_and_a_full_disk_is() {
        assert!(write(Failing(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write(Failing(ErrorKind::StorageFull), "text").is_err());
    }
}
