//! Stand-ins for the programs that the daemon starts: they run the real one, hang if told to, and keep what it was
//! given.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder of stand-ins that a daemon finds before the real programs.
pub(crate) struct StandIns(PathBuf);

/// When a stand-in hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hang {
    /// Before it runs the real program.
    Before,
    /// When it has given the real program the first half of the lines of its input.
    Half,
    /// When the real program has ended.
    After,
    /// Before it runs the real program, for as long as it is told to hang.
    Meanwhile,
}

impl StandIns {
    /// In a new folder below `folder`, for these programs.
    pub(crate) fn new(folder: &Path, programs: &[&str]) -> Self {
        let folder = folder.join("stand-ins");
        fs::create_dir(&folder).unwrap();
        for program in programs {
            let real = env::split_paths(&env::var_os("PATH").unwrap())
                .map(|folder| folder.join(program))
                .find(|file| file.is_file())
                .unwrap();
            let (file, real) = (folder.join(program), real.display());
            let it = file.display();
            let script = format!(
                "#!/bin/sh\n\
                 echo $$ >> {it}.processes\n\
                 cat > {it}.$$\n\
                 cat {it}.$$ >> {it}.input\n\
                 trap 'rm -f {it}.$$' EXIT\n\
                 lines=$(($(wc -l < {it}.$$) / 2))\n\
                 case \"$(cat {it}.hang 2>/dev/null) $1\" in\n\
                 Before*) echo stuck >&2; sleep 600 ;;\n\
                 'Half restore') head -n $lines {it}.$$ | {real} \"$@\"; sleep 600 ;;\n\
                 Meanwhile*) while [ -e {it}.hang ]; do sleep 0.05; done ;;\n\
                 After*) {real} \"$@\" < {it}.$$; sleep 600 ;;\n\
                 esac\n\
                 {real} \"$@\" < {it}.$$\n"
            );
            fs::write(&file, script).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    /// Lets `command` find the stand-ins.
    pub(crate) fn before_others(&self, command: &mut Command) {
        let path = env::var_os("PATH").unwrap();
        let path = env::join_paths([self.0.clone()].into_iter().chain(env::split_paths(&path))).unwrap();
        command.env("PATH", path);
    }

    /// From now on `program` hangs, or works again.
    pub(crate) fn hang(&self, program: &str, hang: Option<Hang>) {
        let file = self.0.join(format!("{program}.hang"));
        match hang {
            Some(hang) => fs::write(file, format!("{hang:?}")).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
    }

    /// Forgets what the programs were given.
    pub(crate) fn forget(&self) {
        for file in fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|end| end == "input") {
                fs::remove_file(file).unwrap();
            }
        }
    }

    /// All input of `program` since it was forgotten.
    pub(crate) fn input(&self, program: &str) -> String {
        fs::read_to_string(self.0.join(format!("{program}.input"))).unwrap_or_default()
    }

    /// The processes of `program` that have not ended or were not reaped.
    pub(crate) fn left(&self, program: &str) -> Vec<String> {
        let processes = fs::read_to_string(self.0.join(format!("{program}.processes"))).unwrap_or_default();
        let status = |id: &str| fs::read_to_string(format!("/proc/{id}/stat")).ok();
        // The kernel keeps 15 bytes of a name.
        let name = format!("({}", &program[..program.len().min(15)]);
        processes.lines().filter_map(status).filter(|status| status.contains(&name)).collect()
    }
}
