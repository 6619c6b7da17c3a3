//! A dataplane in memory.
