//! What all targets have in common: long inputs, and the time that an input may take.

use nix::time::{ClockId, clock_gettime};

/// An input that begins with this is its rest, again and again. So a short input tests how work grows with length.
const REPEATED: &[u8] = b"#again\n";

/// The length to which an input is repeated, in bytes.
const LONG: usize = 256 * 1024;

/// The processor time that an input may take, in nanoseconds: in all, and for each byte. Measured are at most 500 for a
/// byte; a parser whose work grows with the square of the length needs more than ten times the limit for a long input.
const FIXED: i64 = 1_000_000_000;
const EACH_BYTE: i64 = 5_000;

/// Checks that `property` holds for `data`, in a time that is proportional to the length.
pub fn check(data: &[u8], property: fn(&[u8])) {
    let repeated;
    let data = match data.strip_prefix(REPEATED) {
        Some(rest) if !rest.is_empty() => {
            repeated = rest.repeat(LONG.div_ceil(rest.len()).min(LONG));
            &repeated
        }
        _ => data,
    };
    let start = processor_time();
    property(data);
    let took = processor_time() - start;
    let limit = FIXED + EACH_BYTE * i64::try_from(data.len()).unwrap_or(i64::MAX / EACH_BYTE);
    assert!(took <= limit, "{} bytes took {} ms", data.len(), took / 1_000_000);
}

/// The processor time of this thread, in nanoseconds: other processes do not change it.
fn processor_time() -> i64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of every Linux");
    time.tv_sec() * 1_000_000_000 + time.tv_nsec()
}
