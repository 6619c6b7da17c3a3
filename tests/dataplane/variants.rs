//! Which variant of iptables is used, and which error is returned if there is none.

use std::sync::Arc;

use towpath::{
    dataplane::{
        Dataplane,
        command::Commands,
        kernel::{Backend, Kernel, Variant},
    },
    model::Family,
    ruleset::Ruleset,
};

use crate::fixtures::{apply_all, every_kind, for_both_variants, in_namespace, kernel, names_only, sh, tool};

/// A folder with links to `programs`, to be used as the only one that is searched.
fn only(programs: &[&str]) -> (tempfile::TempDir, Arc<Commands>) {
    let folder = tempfile::tempdir().unwrap();
    for program in programs {
        std::os::unix::fs::symlink(format!("/usr/sbin/{program}"), folder.path().join(program)).unwrap();
    }
    let commands = Arc::new(Commands::new(folder.path().into()));
    (folder, commands)
}

#[test]
fn missing_programs_are_named_with_their_package() {
    in_namespace(|| {
        let error = |programs: &[&str], backend| {
            let (_folder, commands) = only(programs);
            Kernel::new(commands, backend).unwrap_err().to_string()
        };
        assert_eq!(error(&[], Backend::Auto), "ipset was not found: install the package ipset");
        assert_eq!(error(&["ipset"], Backend::Auto), "iptables was not found: install the package iptables");
        let nft = ["ipset", "iptables-nft", "iptables-nft-save", "iptables-nft-restore"];
        assert_eq!(
            error(&nft, Backend::Only(Variant::Legacy)),
            "iptables-legacy-restore was not found: install the package iptables"
        );
    });
}

#[test]
fn only_installed_variant_is_used_and_missing_ip6tables_is_an_error() {
    in_namespace(|| {
        for variant in Variant::BOTH {
            let of = |family| ["", "-save", "-restore"].map(|suffix| tool(variant, family, suffix));
            let programs: Vec<String> = Family::BOTH.into_iter().flat_map(of).collect();
            let programs: Vec<&str> = programs.iter().map(String::as_str).chain(["ipset"]).collect();
            let (_folder, commands) = only(&programs);
            let mut kernel = Kernel::new(commands, Backend::Auto).unwrap();
            assert_eq!(kernel.variant(), variant);
            assert_eq!(kernel.families(), Family::BOTH);
            apply_all(&mut kernel, &every_kind());
            assert_eq!(kernel.observe().unwrap(), names_only(&every_kind()));
            apply_all(&mut kernel, &Ruleset::default());

            let without_v6: Vec<&str> =
                programs.into_iter().filter(|name| !name.starts_with("ip6")).collect();
            let (_folder, commands) = only(&without_v6);
            let error = Kernel::new(commands, Backend::Auto).unwrap_err().to_string();
            assert!(error.contains("IPv6") && error.contains("install ip6tables"), "{error}");
        }
        let plain = ["", "-save", "-restore"]
            .map(|suffix| [format!("iptables{suffix}"), format!("ip6tables{suffix}")]);
        let plain: Vec<&str> = plain.iter().flatten().map(String::as_str).chain(["ipset"]).collect();
        let (_folder, commands) = only(&plain);
        let is_nft = sh("iptables --version").contains("nf_tables");
        let variant = if is_nft { Variant::Nft } else { Variant::Legacy };
        assert_eq!(Kernel::new(commands, Backend::Auto).unwrap().variant(), variant);
    });
}

#[test]
fn variant_is_kubelets_or_else_the_one_with_more_rules() {
    let chosen = || Kernel::new(Arc::new(Commands::default()), Backend::Auto).unwrap().variant();
    for_both_variants(move |variant| {
        let (this, other) = (tool(variant, Family::V4, ""), tool(variant.other(), Family::V4, ""));
        sh(&format!("{this} -A INPUT -j ACCEPT"));
        assert_eq!(chosen(), variant, "one rule against none");
        apply_all(&mut kernel(variant.other()), &every_kind());
        assert_eq!(chosen(), variant, "our own rules do not count");
        sh(&format!("{other} -A INPUT -j ACCEPT && {other} -A INPUT -j ACCEPT"));
        assert_eq!(chosen(), variant.other(), "two rules against one");
        sh(&format!("{} -t mangle -N KUBE-KUBELET-CANARY", tool(variant, Family::V6, "")));
        assert_eq!(chosen(), variant, "kubelet's chain");
    });
}

#[test]
fn without_a_rule_of_either_variant_it_is_that_of_plain_iptables() {
    in_namespace(|| {
        let is_nft = sh("iptables --version").contains("nf_tables");
        let variant = if is_nft { Variant::Nft } else { Variant::Legacy };
        assert_eq!(Kernel::new(Arc::new(Commands::default()), Backend::Auto).unwrap().variant(), variant);
    });
}

/// The programs of one variant, of which this one fails whenever it is run.
fn with_failing(variant: Variant, failing: &str) -> (tempfile::TempDir, Arc<Commands>) {
    let of = |family| ["", "-save", "-restore"].map(|suffix| tool(variant, family, suffix));
    let programs: Vec<String> =
        Family::BOTH.into_iter().flat_map(of).filter(|name| name != failing).collect();
    let programs: Vec<&str> = programs.iter().map(String::as_str).chain(["ipset"]).collect();
    let (folder, commands) = only(&programs);
    std::os::unix::fs::symlink("/bin/false", folder.path().join(failing)).unwrap();
    (folder, commands)
}

#[test]
fn unusable_filter_table_is_reported_with_the_module_to_load() {
    in_namespace(|| {
        for variant in Variant::BOTH {
            let error = |family| {
                let (_folder, commands) = with_failing(variant, &tool(variant, family, ""));
                Kernel::new(commands, Backend::Only(variant)).unwrap_err().to_string()
            };
            let v4 = error(Family::V4);
            assert!(v4.contains("the filter table cannot be used") && v4.contains("load the module"), "{v4}");
            let v6 = error(Family::V6);
            assert!(v6.contains("IPv6 is on, but its filter table cannot be used"), "{v6}");
        }
    });
}
