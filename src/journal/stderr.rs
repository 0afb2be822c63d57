//! Standard error, written without ever waiting for whoever reads it.
//!
//! It may be a pipe, a FIFO, a socket of a journal, a terminal or a file, and nobody may be reading. Its open file
//! description is shared with others, who may count on its blocking, so O_NONBLOCK is never set on it. Instead each
//! write says for itself that it does not wait ([`offer`]). Pipes and sockets know how; FIFOs and terminals do not, so
//! the supervisor opens those once more for the whole service ([`reopen`]). What is left are files: a write to one waits
//! for its disk at worst, and for nobody's reading.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{SFlag, fstat};

/// The longest text that a pipe takes whole or not at all (PIPE_BUF), bytes.
pub const WHOLE: usize = 4096;

/// What became of a text that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    All,
    /// Only its beginning. Not from a pipe, if it is no longer than [`WHOLE`].
    Part,
    /// Nobody reads, or nobody can any more.
    Nothing,
}

/// Offers `bytes` to standard error. Takes no lock and no memory, so that a crash can be told by it too.
pub fn offer(bytes: &[u8]) -> Taken {
    // JUSTIFICATION: std's handle locks, and has no way to write without waiting.
    #[expect(unsafe_code, reason = "descriptor 2 has no owned handle")]
    // SAFETY: this process keeps descriptor 2 open from its start to its end.
    let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    offer_to(stderr, bytes)
}

fn offer_to(to: BorrowedFd<'_>, bytes: &[u8]) -> Taken {
    let written = loop {
        match write_now(to, bytes) {
            Err(Errno::EINTR) => {}
            // A file; or opened anew by the supervisor, so that it does not wait either.
            Err(Errno::EOPNOTSUPP) => match nix::unistd::write(to, bytes) {
                Err(Errno::EINTR) => {}
                result => break result,
            },
            result => break result,
        }
    };
    match written {
        Ok(length) if length >= bytes.len() => Taken::All,
        Ok(0) | Err(_) => Taken::Nothing,
        Ok(_) => Taken::Part,
    }
}

/// One write at the file's own position that ends instead of waiting.
///
/// JUSTIFICATION: neither std nor nix have pwritev2.
#[expect(unsafe_code, reason = "pwritev2 has no safe form")]
fn write_now(to: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the one part is memory that `bytes` borrows, and is only read; the descriptor is borrowed too.
    let written = unsafe { libc::pwritev2(to.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(written).map(|length| usize::try_from(length).unwrap_or(0))
}

/// Gives descriptor 2 an open file description of its own that does not wait, if it is a FIFO or a terminal: those cannot
/// be written without waiting otherwise. For a process that writes there for itself and its children alone.
///
/// # Errors
/// It cannot be opened once more. Whoever stops reading it then stops who writes; a pipe is no error, it needs none.
pub fn reopen() -> Result<(), NotOurs> {
    let number = libc::STDERR_FILENO;
    let link = format!("/proc/self/fd/{number}");
    let kind = fstat(std::io::stderr())
        .map_or(SFlag::empty(), |stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    if kind != SFlag::S_IFIFO && kind != SFlag::S_IFCHR {
        return Ok(());
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let opened = std::fs::File::options().write(true).custom_flags(flags).open(&link);
    match opened.and_then(|file| nix::unistd::dup2_stderr(&file).map_err(io::Error::from)) {
        Ok(()) => Ok(()),
        Err(source) => {
            let name = std::fs::read_link(&link).unwrap_or_default();
            if name.as_os_str().as_encoded_bytes().starts_with(b"pipe:") {
                return Ok(());
            }
            Err(NotOurs { name: name.display().to_string(), source })
        }
    }
}

/// Standard error is what waits for its reader.
#[derive(Debug, thiserror::Error)]
#[error(
    "open standard error (\"{name}\") once more: {source}; whoever stops reading there stops the service: let its user \
     open it, or take a pipe, a socket or a file"
)]
pub struct NotOurs {
    name: String,
    #[source]
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Writes until nothing more is taken, which must come about; then one text is taken again once it was read.
    fn fills_and_drains(to: &OwnedFd, mut from: impl Read, what: &str) {
        let line = [b'x'; 1000];
        let mut taken = 0_usize;
        while offer_to(to.as_fd(), &line) == Taken::All {
            taken += line.len();
            assert!(taken < 64 << 20, "{what} never fills");
        }
        assert!(taken > 0, "{what}: the control");
        let mut rest = vec![0; taken];
        from.read_exact(&mut rest).unwrap();
        assert_eq!(offer_to(to.as_fd(), b"again"), Taken::All, "{what}");
    }

    #[test]
    fn what_nobody_reads_is_not_waited_for() {
        let (from, to) = nix::unistd::pipe().unwrap();
        fills_and_drains(&to, std::fs::File::from(from), "a pipe");
        let (from, to) = UnixStream::pair().unwrap();
        fills_and_drains(&to.into(), from, "a socket");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let from = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        // As `reopen` does it.
        let to = std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        fills_and_drains(&to.into(), from, "a FIFO");
    }

    #[test]
    fn what_is_longer_than_a_pipe_takes_comes_in_part() {
        let (_from, to) = nix::unistd::pipe().unwrap();
        assert_eq!(offer_to(to.as_fd(), &vec![b'x'; 1 << 20]), Taken::Part);
        let (from, to) = nix::unistd::pipe().unwrap();
        drop(from);
        assert_eq!(offer_to(to.as_fd(), b"x"), Taken::Nothing, "nobody can read it");
    }

    #[test]
    fn a_file_is_written_at_its_end() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = std::fs::File::options().append(true).open(&path).unwrap();
        for line in [b"one\n", b"two\n"] {
            assert_eq!(offer_to(file.as_fd(), line), Taken::All);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
    }
}
