//! The files of a node, with other programs that write them too.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use serde_json::json;
use towpath::gate::{
    conflist::WhenAway,
    install::{Fault, Installer, Settings, State, Wait, remove},
};

use crate::{
    node::{FLANNEL, FLANNEL_TEXT, K3S_TEXT, Node, SOCKET, program},
    wait::wait_until,
};

/// Generous: without an event it would take an hour.
const SOON: Duration = Duration::from_secs(30);

fn check(node: &Node) -> State {
    Installer::new(node.settings(WhenAway::Wait)).check()
}

/// Keeps a node installed, on a thread that ends with the process. Returns the last reported state.
fn keep(node: &Node) -> Arc<Mutex<Option<State>>> {
    keep_with(node.settings(WhenAway::Wait))
}

fn keep_with(settings: Settings) -> Arc<Mutex<Option<State>>> {
    let installer = Installer::new(settings);
    let last = Arc::new(Mutex::new(None));
    let reported = last.clone();
    thread::spawn(move || installer.run(|state, _| *reported.lock().unwrap() = Some(state)));
    last
}

fn installed(file: &str) -> State {
    State::Installed { file: file.to_owned(), removals: 0 }
}

#[track_caller]
fn assert_failed(state: &State, is_it: impl Fn(&Fault) -> bool) {
    assert!(matches!(state, State::Failed(fault) if is_it(fault)), "{state:?}");
}

/// Makes a file old enough to be taken for complete.
fn settle(node: &Node, name: &str) {
    let file = fs::File::options().write(true).open(node.conf(name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_mins(1)).unwrap();
}

#[test]
fn plugin_and_entry_are_put_in_place_and_the_rest_keeps_every_byte() {
    for (text, others) in [(FLANNEL_TEXT, ["flannel", "portmap"]), (K3S_TEXT, ["flannel", "bandwidth"])] {
        let node = Node::new();
        node.write(FLANNEL, text);
        assert_eq!(node.types(), others);
        assert_eq!(check(&node), installed(FLANNEL));
        let plugins = node.load().unwrap();
        let entry =
            json!({"type": "towpath-cni", "socket": SOCKET, "whenAway": "wait", "timeoutSeconds": 30});
        assert_eq!((plugins.len(), &plugins[2]), (3, &entry));
        let with = node.read(FLANNEL);
        let line = with.lines().find(|line| line.contains("towpath-cni")).unwrap();
        assert!(line.starts_with("    {"), "{line}");
        assert_eq!(with.replace(&format!(",\n{line}"), ""), text);
        assert_eq!(fs::read(node.plugin()).unwrap(), fs::read(node.source()).unwrap());
        assert_eq!(fs::metadata(node.plugin()).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(node.files(), [FLANNEL], "a file was left");

        let before = fs::metadata(node.conf(FLANNEL)).unwrap().ino();
        assert_eq!(check(&node), installed(FLANNEL));
        assert_eq!(fs::metadata(node.conf(FLANNEL)).unwrap().ino(), before, "written again");
    }
}

#[test]
fn mode_and_owner_of_the_configuration_stay() {
    let node = Node::with_flannel();
    let path = node.conf(FLANNEL);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    }
    let of = || fs::metadata(&path).map(|it| (it.mode(), it.uid(), it.gid())).unwrap();
    let before = of();
    assert_eq!(check(&node), installed(FLANNEL));
    assert_eq!(of(), before);
}

#[test]
fn entry_comes_back_each_time_another_program_rewrites_the_file() {
    let node = Node::with_flannel();
    let state = keep(&node);
    wait_until("the entry", SOON, || node.is_gated(FLANNEL));
    for round in 0..20 {
        // As `cp -f` and k3s do, and as those that rename do.
        if round % 2 == 0 {
            node.write(FLANNEL, K3S_TEXT);
        } else {
            node.write("new.tmp", FLANNEL_TEXT);
            fs::rename(node.conf("new.tmp"), node.conf(FLANNEL)).unwrap();
        }
        wait_until(&format!("the entry, round {round}"), SOON, || node.is_gated(FLANNEL));
        let others = if round % 2 == 0 { ["flannel", "bandwidth"] } else { ["flannel", "portmap"] };
        assert_eq!(node.types()[..2], others, "the last text of the other program");
    }
    // Both programs go on, and a person learns of it.
    let says_so = || {
        let state = state.lock().unwrap().clone();
        state.and_then(|state| state.reason()).is_some_and(|reason| reason.contains("removed the entry"))
    };
    wait_until("a state that says so", SOON, says_so);
}

#[test]
fn last_text_of_another_program_is_never_lost() {
    let node = Node::with_flannel();
    let text = |version: usize| FLANNEL_TEXT.replace("cbr0", &format!("version-{version}"));
    let (is_over, conf_dir) = (Arc::new(AtomicBool::new(false)), node.conf_dir());
    let over = is_over.clone();
    let writer = thread::spawn(move || {
        let mut version = 0;
        while !over.load(Ordering::Relaxed) {
            version += 1;
            let target = conf_dir.join(FLANNEL);
            if version % 3 == 0 {
                // An unlinked or exchanged file gets none of this: it was opened by its name just before.
                fs::write(&target, text(version)).unwrap();
            } else {
                fs::write(conf_dir.join("other.tmp"), text(version)).unwrap();
                fs::rename(conf_dir.join("other.tmp"), &target).unwrap();
            }
            let read = fs::read_to_string(&target).unwrap_or_default();
            let is_newest = read.contains(&format!("version-{version}\""));
            // A file that is being exchanged back is an older one for a moment.
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            let mut is_found = is_newest;
            while !is_found && std::time::Instant::now() < deadline {
                let read = fs::read_to_string(&target).unwrap_or_default();
                is_found = read.contains(&format!("version-{version}\""));
            }
            assert!(
                is_found,
                "version {version} was lost: {}",
                fs::read_to_string(&target).unwrap_or_default()
            );
        }
        version
    });
    let mut installer = Installer::new(node.settings(WhenAway::Wait));
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(3) && !writer.is_finished() {
        installer.check();
    }
    is_over.store(true, Ordering::Relaxed);
    let version = writer.join().unwrap();
    assert!(version > 100, "only {version} versions");
    assert!(matches!(installer.check(), State::Installed { .. }));
    remove(&node.conf_dir(), None).unwrap();
    assert!(node.read(FLANNEL).contains(&format!("version-{version}\"")));
}

#[test]
fn network_plugin_that_is_installed_later_is_found() {
    let node = Node::new();
    fs::remove_dir(node.conf_dir()).unwrap();
    assert!(matches!(check(&node), State::Waiting(Wait::NoConfiguration(_))));
    // A folder that does not exist has no events.
    keep_with(Settings { check_interval: Duration::from_millis(50), ..node.settings(WhenAway::Wait) });
    fs::create_dir(node.conf_dir()).unwrap();
    node.write(FLANNEL, FLANNEL_TEXT);
    wait_until("the entry in a new folder", SOON, || node.is_gated(FLANNEL));

    let node = Node::new();
    let state = keep(&node);
    wait_until("the first check", SOON, || state.lock().unwrap().is_some());
    assert!(matches!(&*state.lock().unwrap(), Some(State::Waiting(Wait::NoConfiguration(_)))));
    assert!(node.plugin().exists(), "the plugin need not wait");
    node.write(FLANNEL, FLANNEL_TEXT);
    wait_until("the entry", SOON, || node.is_gated(FLANNEL));
}

#[test]
fn folder_without_the_plugins_of_the_configuration_is_not_the_runtimes() {
    let node = Node::with_flannel();
    for plugin in ["flannel", "portmap"] {
        fs::remove_file(node.bin_dir().join(plugin)).unwrap();
    }
    let state = check(&node);
    assert!(matches!(state, State::Waiting(Wait::NoPlugins { .. })), "{state:?}");
    assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
    // As in k3s: a link that leads out of what a container sees.
    symlink("/nowhere/flannel", node.bin_dir().join("flannel")).unwrap();
    assert_eq!(check(&node), installed(FLANNEL));
}

#[test]
fn entry_follows_the_settings_of_the_next_start() {
    let node = Node::with_flannel();
    assert_eq!(check(&node), installed(FLANNEL));
    assert_eq!(Installer::new(node.settings(WhenAway::Open)).check(), installed(FLANNEL));
    let plugins = node.load().unwrap();
    assert_eq!((plugins.len(), &plugins[2]["whenAway"]), (3, &json!("open")));
}

#[test]
fn only_the_first_configuration_gets_the_entry() {
    let node = Node::with_flannel();
    let other = FLANNEL_TEXT.replace("cbr0", "other");
    node.write("20-other.conflist", &other);
    node.write("05-notes.txt", "not read by a runtime");
    fs::create_dir(node.conf("00-folder.conflist")).unwrap();
    assert_eq!(check(&node), installed(FLANNEL));
    assert_eq!(node.read("20-other.conflist"), other);
    // Another network plugin goes in front.
    node.write("05-new.conflist", &other);
    let mut installer = Installer::new(node.settings(WhenAway::Wait));
    assert_eq!(installer.check(), installed("05-new.conflist"));
    assert!(node.is_gated("05-new.conflist"));
    let removed = remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap();
    assert_eq!(removed.entries, ["05-new.conflist", FLANNEL]);
    assert_eq!((node.read("05-new.conflist"), node.read(FLANNEL)), (other, FLANNEL_TEXT.to_owned()));
}

#[test]
fn invalid_configuration_is_passed_over_until_it_is_valid() {
    let node = Node::with_flannel();
    let name = "05-broken.conflist";
    for text in
        ["", "{\"name\": ", "{\"name\": \"n\", \"plugins\": []}", "{\"plugins\": [{\"type\": \"bridge\"}]}"]
    {
        node.write(name, text);
        // It may be half written.
        assert_eq!(check(&node), State::Waiting(Wait::Busy(name.to_owned())));
        settle(&node, name);
        assert_eq!(check(&node), installed(FLANNEL), "{text}");
        assert_eq!(node.read(name), text);
    }
    let valid = r#"{"name": "n", "plugins": [{"type": "bridge"}]}"#;
    node.write(name, valid);
    assert_eq!(check(&node), installed(name));
    assert_eq!(node.types(), ["bridge", "towpath-cni"]);

    let node = Node::new();
    node.write(FLANNEL, &" ".repeat(2 << 20));
    settle(&node, FLANNEL);
    let state = check(&node);
    assert!(matches!(state, State::Waiting(Wait::NoneValid { .. })), "{state:?}");
    assert!(state.reason().unwrap().contains("10-flannel.conflist: more than 1048576 bytes"), "{state:?}");
}

#[test]
fn what_cannot_be_chained_is_left_alone_and_named() {
    let single = r#"{"name": "n", "type": "bridge"}"#;
    let multus = r#"{"name": "multus-cni-network", "type": "multus", "delegates": [{"type": "flannel"}]}"#;
    let multus_list = r#"{"name": "n", "plugins": [{"type": "multus"}]}"#;
    for (name, text, word) in [
        ("10-bridge.conf", single, "10-bridge.conf: no plugin can follow"),
        ("10-bridge.json", single, "10-bridge.json: no plugin can follow"),
        ("00-multus.conf", multus, "00-multus.conf: Multus"),
        ("00-multus.conflist", multus_list, "00-multus.conflist: Multus"),
    ] {
        let node = Node::new();
        node.write(name, text);
        node.write("20-flannel.conflist", FLANNEL_TEXT);
        let state = check(&node);
        assert!(state.reason().is_some_and(|reason| reason.starts_with(word)), "{state:?}");
        assert_failed(&state, |_| true);
        assert_eq!(
            (node.read(name).as_str(), node.read("20-flannel.conflist").as_str()),
            (text, FLANNEL_TEXT)
        );
    }
}

#[test]
fn link_is_neither_followed_nor_replaced() {
    let node = Node::new();
    let target = node.path().join("elsewhere");
    fs::write(&target, FLANNEL_TEXT).unwrap();
    symlink(&target, node.conf(FLANNEL)).unwrap();
    assert_failed(&check(&node), |fault| matches!(fault, Fault::Link(file) if file == FLANNEL));
    assert_eq!(fs::read_to_string(&target).unwrap(), FLANNEL_TEXT);
    assert!(node.conf(FLANNEL).is_symlink());
    assert_eq!(remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap().entries, [""; 0]);
    // Somebody put an entry there by hand.
    fs::write(&target, r#"{"name": "n", "plugins": [{"type": "a"}, {"type": "towpath-cni"}]}"#).unwrap();
    program(&node.plugin(), "the plugin");
    assert!(matches!(remove(&node.conf_dir(), Some(&node.bin_dir())), Err(Fault::Link(_))));
    assert!(node.plugin().exists());
}

#[test]
fn plugin_that_was_replaced_is_repaired() {
    let node = Node::with_flannel();
    let state = keep(&node);
    wait_until("the entry", SOON, || node.is_gated(FLANNEL));
    let is_right = || {
        fs::symlink_metadata(node.plugin())
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o7777 == 0o755)
            && fs::read(node.plugin()).unwrap() == fs::read(node.source()).unwrap()
    };
    let damages: [&dyn Fn(); 4] = [
        &|| fs::write(node.plugin(), "another program").unwrap(),
        &|| fs::set_permissions(node.plugin(), fs::Permissions::from_mode(0o644)).unwrap(),
        &|| fs::remove_file(node.plugin()).unwrap(),
        &|| {
            symlink("flannel", node.bin_dir().join("link")).unwrap();
            fs::rename(node.bin_dir().join("link"), node.plugin()).unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        wait_until(&format!("repair {number}"), SOON, is_right);
    }
    assert_eq!(
        fs::read_to_string(node.bin_dir().join("flannel")).unwrap(),
        "flannel",
        "written through the link"
    );
    assert!(matches!(&*state.lock().unwrap(), Some(State::Installed { .. })));
}

#[test]
fn entry_is_never_there_without_the_plugin() {
    // No folder, no plugin in the image, and a name that is taken.
    let damages: [&dyn Fn(&Node); 3] = [
        &|node| fs::remove_dir_all(node.bin_dir()).unwrap(),
        &|node| fs::remove_file(node.source()).unwrap(),
        &|node| fs::create_dir(node.plugin()).unwrap(),
    ];
    for damage in damages {
        let node = Node::with_flannel();
        damage(&node);
        assert_failed(&check(&node), |fault| matches!(fault, Fault::Io { .. }));
        assert_eq!(node.read(FLANNEL), FLANNEL_TEXT);
    }

    for round in 0..40 {
        let node = Arc::new(Node::with_flannel());
        let (is_over, watched) = (Arc::new(AtomicBool::new(false)), node.clone());
        let over = is_over.clone();
        let runtime = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                watched.load().unwrap_or_else(|error| panic!("no pod can start: {error}"));
            }
        });
        check(&node);
        if round % 20 == 0 {
            remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        runtime.join().unwrap();
    }
}

#[test]
fn removal_gives_back_the_original_bytes_and_takes_the_plugin_last() {
    let odd = "{\"plugins\":[\r\n\t{\"type\":\"bridge\",\"x\":\"}],[{\\\"\"} ],\r\n \"name\":\"n\"}";
    for text in [FLANNEL_TEXT, K3S_TEXT, odd] {
        let node = Node::new();
        node.write(FLANNEL, text);
        assert_eq!(check(&node), installed(FLANNEL));
        // What a daemon leaves that is killed while it writes.
        node.write(".towpath-cni.tmp", "half");
        let removed = remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap();
        assert_eq!((removed.entries, removed.plugin), (vec![FLANNEL.to_owned()], true));
        assert_eq!(node.read(FLANNEL), text);
        assert_eq!(node.files(), [FLANNEL]);
        assert!(!node.plugin().exists());

        let nothing = remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap();
        assert_eq!((nothing.entries.len(), nothing.plugin), (0, false));
    }
    let nowhere = Node::new().path().join("nowhere");
    assert_eq!(remove(&nowhere, Some(&nowhere)).unwrap().entries, [""; 0]);
}

#[test]
fn plugin_stays_a_moment_for_runtimes_that_have_just_read_its_entry() {
    let node = Node::with_flannel();
    assert_eq!(check(&node), installed(FLANNEL));
    let (conf_dir, bin_dir) = (node.conf_dir(), node.bin_dir());
    let removal = thread::spawn(move || remove(&conf_dir, Some(&bin_dir)).unwrap());
    wait_until("the removal of the entry", SOON, || !node.is_gated(FLANNEL));
    // A runtime starts flannel first, which takes about so long.
    thread::sleep(Duration::from_millis(300));
    assert!(node.plugin().exists());
    assert!(removal.join().unwrap().plugin && !node.plugin().exists());
}

#[test]
fn plugin_stays_while_an_entry_cannot_be_taken_out() {
    let node = Node::with_flannel();
    assert_eq!(check(&node), installed(FLANNEL));
    node.write("20-broken.conflist", r#"{"plugins": [{"type": "towpath-cni"},]}"#);
    let fault = remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap_err();
    assert!(fault.to_string().starts_with("20-broken.conflist: not a JSON object"), "{fault}");
    assert!(node.plugin().exists());
    node.write("20-broken.conflist", "not ours, and not valid");
    assert!(remove(&node.conf_dir(), Some(&node.bin_dir())).unwrap().plugin);
}

#[test]
fn half_written_file_of_a_killed_daemon_does_not_matter() {
    let node = Node::with_flannel();
    node.write(".towpath-cni.tmp", "half");
    fs::write(node.bin_dir().join(".towpath-cni.tmp"), "half").unwrap();
    assert_eq!(node.types(), ["flannel", "portmap"], "a runtime reads it");
    assert_eq!(check(&node), installed(FLANNEL));
    assert_eq!(node.files(), [FLANNEL]);
    assert!(!node.bin_dir().join(".towpath-cni.tmp").exists());
}
