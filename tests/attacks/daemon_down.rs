//! The same attacks while no daemon runs, and while one starts: denied packets stay denied.

use crate::{
    bed::Bed,
    table::{Outcome, Table},
    topics,
};

/// After a crash.
pub(crate) fn while_dead(bed: &Bed) -> Vec<Outcome> {
    let mut table = Table::new(bed);
    table.rows = topics::all(bed);
    table.repeat_as("while the daemon is dead");
    table.run()
}

/// Repeatedly, until the daemons are ready.
pub(crate) fn while_starting(bed: &Bed) -> Vec<Outcome> {
    let mut table = Table::new(bed);
    table.rows = topics::all(bed);
    table.repeat_as("while the daemon starts");
    while !bed.is_guarded() {
        table.send();
    }
    table.run()
}
