use super::*;

#[test]
fn large_input_and_output_do_not_deadlock() {
    let commands = Commands::default();
    let input = "a line of text\n".repeat(100_000);
    let output = commands.run("cat", &[], &input).unwrap();
    assert_eq!(output.checked().unwrap(), input);
    assert_eq!(commands.started(), 1);
}

#[test]
fn input_is_complete_before_the_program_starts() {
    let input = "add tp4-pods-x 10.244.1.12\n".repeat(10_000);
    let output = Commands::default().run("stat", &["-L", "-c", "%s", "/dev/stdin"], &input).unwrap();
    assert_eq!(output.checked().unwrap().trim(), input.len().to_string());
}

#[test]
fn program_that_does_not_read_its_input_ends() {
    let output = Commands::default().run("false", &[], &"x".repeat(1 << 20)).unwrap();
    assert!(!output.success);
}

#[test]
fn error_contains_status_and_output() {
    let output = Commands::default().run("sh", &["-c", "echo why >&2; exit 3"], "").unwrap();
    let error = output.checked().unwrap_err().to_string();
    assert_eq!(error, "sh -c echo why >&2; exit 3 failed with exit status: 3: why");
}

#[test]
fn only_runs_with_the_xtables_lock_are_counted() {
    let commands = Commands::default();
    commands.run("true", &[], "").unwrap();
    assert_eq!(*commands.lock_runs(), 0);
    for count in 1..=3 {
        commands.run_with_lock("true", &[], "").unwrap();
        assert_eq!(*commands.lock_runs(), count);
    }
}

#[test]
fn programs_are_named_with_their_debian_package() {
    for (program, from) in [
        ("ipset", "ipset"),
        ("modprobe", "kmod"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("iptables-nft", "iptables"),
        ("ip6tables-legacy-save", "iptables"),
    ] {
        assert_eq!(package(program), from, "{program}");
    }
}

#[test]
fn missing_program_is_named_with_its_package() {
    let commands = Commands::new("/nonexistent".into());
    assert!(!commands.has("ipset"));
    let error = commands.run("ip6tables-nft-restore", &[], "").unwrap_err().to_string();
    assert_eq!(error, "ip6tables-nft-restore was not found: install the package iptables");
    assert_eq!(commands.started(), 0);
}

/// A command with this limit, and what it must have ended with. Nothing that it started may be left.
fn killed(script: &str, limit: Duration) -> DataplaneError {
    let commands = Commands::default().with_limit(limit);
    let started = Instant::now();
    let error = commands.run("sh", &["-c", script], "").unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(30), "the scripts sleep for longer");
    assert_eq!(commands.longest_running(), None);
    assert!(locked(&commands.unkillable).is_empty());
    error
}

#[test]
fn command_that_hangs_is_killed_with_its_children_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let script = format!("echo waiting >&2; sleep 60 & echo $! $$ > {}; sleep 60", pids.display());
    let error = killed(&script, Duration::from_millis(1_500));
    let text = error.to_string();
    assert!(text.starts_with("sh -c echo waiting"), "{text}");
    assert!(text.ends_with("did not end within 1 s and was killed: waiting"), "{text}");
    assert_eq!(error.reason().label(), "timeout");
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The process that adopts the child's child reaps it. The signal was sent; on a busy machine the kernel
        // delivers it a little later.
        let has_ended = || stat().is_empty() || stat().contains(") Z ");
        let until = Instant::now() + Duration::from_secs(10);
        while !has_ended() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(has_ended(), "still runs: {}", stat());
    }
    let own = pids.split_whitespace().last().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{own}")).exists(), "a zombie is left");
}

#[test]
fn stopped_command_and_one_that_closed_its_output_are_killed() {
    for script in ["kill -STOP $$", "exec >&- 2>&-; exec sleep 60"] {
        let error = killed(script, Duration::from_millis(500));
        assert!(matches!(error, DataplaneError::TimedOut { .. }), "{script}: {error}");
    }
}

#[test]
fn output_without_end_is_bounded() {
    let error = killed("yes", Duration::from_mins(1));
    assert_eq!(error.reason().label(), "output", "{error}");
    let output = Commands::default().run("sh", &["-c", "yes | head -c 1000000 >&2"], "").unwrap();
    assert!(output.success);
    assert!(output.stderr.len() <= STDERR_LIMIT && output.stderr.len() > STDERR_LIMIT - 2);
}

#[test]
fn command_ends_although_a_process_that_it_left_behind_holds_its_output_open() {
    let script = "setsid sleep 60 & echo $!; exit 3";
    let output = Commands::default().run("sh", &["-c", script], "").unwrap();
    assert_eq!(output.code, Some(3));
    let left = Pid::from_raw(output.stdout.trim().parse().unwrap());
    nix::sys::signal::kill(left, Signal::SIGKILL).unwrap();
}

#[test]
fn nothing_but_modprobe_runs_beside_a_killed_command_that_has_not_ended() {
    let commands = Commands::default();
    let child = || Command::new("sleep").arg("60").spawn().unwrap();
    locked(&commands.unkillable).push(("modprobe br_netfilter".to_owned(), child()));
    assert!(commands.run("true", &[], "").is_ok());
    locked(&commands.unkillable).push(("iptables-restore --noflush".to_owned(), child()));
    let error = commands.run("true", &[], "").unwrap_err();
    assert!(error.to_string().starts_with("iptables-restore --noflush (process "), "{error}");
    assert_eq!(error.reason().label(), "timeout");
    assert!(commands.wait_for_killed(MODPROBE).is_ok());
    for (_, child) in locked(&commands.unkillable).iter_mut() {
        child.kill().unwrap();
    }
    let end = Instant::now() + Duration::from_secs(10);
    while commands.run("true", &[], "").is_err() || !locked(&commands.unkillable).is_empty() {
        assert!(Instant::now() < end, "both are reaped");
    }
}

#[test]
fn held_xtables_lock_is_waited_for_and_then_reported() {
    let folder = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\necho x >> \"$0.runs\"\n\
                  echo 'Another app is currently holding the xtables lock.' >&2\nexit 4\n";
    let program = folder.path().join("iptables-legacy-restore");
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let path = std::env::join_paths([folder.path(), "/bin".as_ref(), "/usr/bin".as_ref()]).unwrap();
    let commands = Commands { patience: Duration::from_secs(2), ..Commands::new(path) };
    let error = commands.run_with_lock("iptables-legacy-restore", &[], "*filter\n").unwrap_err();
    assert!(matches!(error, DataplaneError::Locked { .. }), "{error}");
    let runs = std::fs::read_to_string(folder.path().join("iptables-legacy-restore.runs")).unwrap();
    assert!(runs.lines().count() > 1);
}
