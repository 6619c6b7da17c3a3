//! The same attacks while no daemon runs, and while one starts: what was denied stays denied.

use crate::{
    bed::Bed,
    table::{Seen, Table},
    topics,
};

/// After a crash.
pub(crate) fn dead(bed: &Bed) -> Vec<Seen> {
    let mut table = Table::new(bed);
    table.rows = topics::all(bed);
    table.again("while the daemon is dead");
    table.run()
}

/// Again and again, until the daemons are ready.
pub(crate) fn starting(bed: &Bed) -> Vec<Seen> {
    let mut table = Table::new(bed);
    table.rows = topics::all(bed);
    table.again("while the daemon starts");
    while !bed.is_guarded() {
        table.send();
    }
    table.run()
}
