//! The socket: one request at a time, answers matched by sequence number.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::NetlinkError;
use super::wire::{Message, Messages, messages};

const DONE: u16 = 3;
const ERROR: u16 = 2;
/// The dump may be inconsistent because something changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often an interrupted dump is asked for again.
const DUMP_ATTEMPTS: usize = 16;
/// The kernel answers at once; this only bounds a machine in trouble.
const ANSWER_SECONDS: i64 = 10;
/// What one answer may hold: the kernel builds dumps in pages of at most 32 KiB.
const ANSWER: usize = 64 * 1024;
/// Enough for a batch of thousands of rules; where it is not granted, the default stays.
const SOCKET_BUFFER: usize = 1 << 20;

/// A netlink socket of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

/// One message of a request that the kernel refused: which (counted from the request's first), and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) index: u32,
    pub(crate) errno: Errno,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Socket {
    /// Opens a socket of this netlink protocol.
    pub(crate) fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let fail = |call: &'static str| move |errno| NetlinkError::Socket { call, errno };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(fail("socket"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(fail("bind"))?;
        // More than the limit is cut by the kernel, and a smaller buffer only means smaller batches.
        let _ = setsockopt(&fd, sockopt::SndBuf, &SOCKET_BUFFER);
        let _ = setsockopt(&fd, sockopt::RcvBuf, &SOCKET_BUFFER);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))
            .map_err(fail("setsockopt"))?;
        Ok(Self { fd, sequence: 1 })
    }

    /// The sequence number for the next request's first message; `count` of them are then taken.
    pub(crate) const fn take_sequence(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends a request.
    pub(crate) fn send(&self, request: &Messages) -> Result<(), NetlinkError> {
        match send(self.fd.as_raw_fd(), request.as_bytes(), MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(Errno::EMSGSIZE) => Err(NetlinkError::TooLarge { bytes: request.as_bytes().len() }),
            Err(errno) => Err(NetlinkError::Socket { call: "send", errno }),
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8], NetlinkError> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Socket { call: "recv", errno }),
            }
        }
    }

    /// Sends a request whose messages are numbered `first ..= last` and waits for the acknowledgement of `last`, which
    /// must have asked for one. Returns every message that was refused. `first` is the batch's begin: an error there ends
    /// the whole.
    pub(crate) fn request(
        &self,
        request: &Messages,
        first: u32,
        last: u32,
    ) -> Result<Vec<Refused>, NetlinkError> {
        self.send(request)?;
        let mut buffer = vec![0; ANSWER];
        let mut refused = Vec::new();
        loop {
            for message in messages(self.receive(&mut buffer)?) {
                let index = message.sequence.wrapping_sub(first);
                if message.kind != ERROR || index > last.wrapping_sub(first) {
                    continue;
                }
                let errno = message.errno().unwrap_or(0);
                if errno != 0 {
                    refused.push(Refused { index, errno: Errno::from_raw(errno) });
                }
                if message.sequence == last || (message.sequence == first && errno != 0) {
                    return Ok(refused);
                }
            }
        }
    }

    /// Sends a dump request made by `request` for a sequence number, collects what `read` makes of each answer, and asks
    /// again when the kernel says that something changed meanwhile. A missing object is an empty dump.
    pub(crate) fn dump<T>(
        &mut self,
        request: impl Fn(u32) -> Messages,
        mut read: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut buffer = vec![0; ANSWER];
        'again: for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.take_sequence(1);
            self.send(&request(sequence))?;
            let mut found = Vec::new();
            let mut interrupted = false;
            loop {
                for message in messages(self.receive(&mut buffer)?) {
                    if message.sequence != sequence {
                        continue;
                    }
                    interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                    match message.kind {
                        DONE if interrupted => continue 'again,
                        DONE => return Ok(found),
                        ERROR => {
                            return match Errno::from_raw(message.errno().unwrap_or(0)) {
                                Errno::ENOENT => Ok(Vec::new()),
                                Errno::EINTR | Errno::EAGAIN => continue 'again,
                                errno => Err(NetlinkError::Socket { call: "dump", errno }),
                            };
                        }
                        _ => found.extend(read(message)),
                    }
                }
            }
        }
        Err(NetlinkError::Socket { call: "dump", errno: Errno::EAGAIN })
    }

    /// Sends a request that has one answer and reads it.
    pub(crate) fn get<T>(
        &mut self,
        request: impl Fn(u32) -> Messages,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        let sequence = self.take_sequence(1);
        self.send(&request(sequence))?;
        let mut buffer = vec![0; ANSWER];
        loop {
            for message in messages(self.receive(&mut buffer)?) {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind == ERROR {
                    let errno = Errno::from_raw(message.errno().unwrap_or(0));
                    return Err(NetlinkError::Socket { call: "get", errno });
                }
                if let Some(value) = read(message) {
                    return Ok(value);
                }
            }
        }
    }
}
