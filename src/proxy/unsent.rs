//! What a socket was given and its other end has not got yet.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// `SIOCOUTQ` of tcp(7), which is `TIOCOUTQ`: the same number on all that Lockgate is built for.
const OPCODE: Opcode = 0x5411;

/// Bytes that are in the socket's queue and not acknowledged.
///
/// # Errors
/// Those of the system call.
#[expect(
    unsafe_code,
    reason = "no safe form of this call exists, and the rate of a reader cannot be seen without it"
)]
pub(crate) fn bytes(socket: &impl AsFd) -> io::Result<u64> {
    // SAFETY: for this request the kernel writes one `int`, and to nothing else.
    let unsent: c_int = unsafe { ioctl(socket, Getter::<OPCODE, c_int>::new()) }?;
    Ok(u64::try_from(unsent).unwrap_or_default())
}
