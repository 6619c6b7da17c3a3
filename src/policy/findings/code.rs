//! The code of each kind of finding.

use std::{fmt, str::FromStr};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The object is refused.
    Error,
    /// The object probably does not mean what its author intended.
    Warning,
    /// Good to know.
    Note,
}

/// Defines [`Code`]: a variant, its number, its name and its usual level, with what it means.
macro_rules! codes {
    ($($(#[doc = $title:literal])+ $variant:ident = $id:literal $name:literal $level:ident,)+) => {
        /// The kind of a finding. Numbers and names are stable: users silence them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $title])+ $variant,)+
        }

        impl Code {
            /// Every code, ascending.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its number, such as `TP101`.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$variant => $id,)+ }
            }

            /// Its name in words, such as `policy-selects-no-pod`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it says, in one sentence.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => concat!($($title),+).trim_start(),)+ }
            }

            /// How bad it usually is.
            #[must_use]
            pub const fn level(self) -> Level {
                match self { $(Self::$variant => Level::$level,)+ }
            }
        }
    };
}

codes! {
    /// The object cannot be used as it is written, and is refused.
    InvalidObject = "TP001" "invalid-object" Error,
    /// The policy or its namespace costs a node more than the default budgets allow, and would be closed.
    OverBudget = "TP002" "over-budget" Warning,
    /// A namespace is not declared: it is taken to exist, and to have no label but its name.
    UndeclaredNamespace = "TP003" "undeclared-namespace" Note,
    /// Two workloads have the same name, and stand for pods with different names here.
    SameName = "TP004" "same-name" Warning,
    /// A code to ignore does not exist.
    UnknownCode = "TP005" "unknown-code" Warning,
    /// The policy selects no pod.
    SelectsNothing = "TP101" "policy-selects-no-pod" Warning,
    /// A peer matches no pod.
    PeerMatchesNothing = "TP102" "peer-matches-no-pod" Warning,
    /// A namespaceSelector matches no namespace.
    NoSuchNamespace = "TP103" "no-such-namespace" Warning,
    /// No object can satisfy the selector, whatever labels it has.
    Contradiction = "TP104" "selector-contradiction" Warning,
    /// One of several values of a label is probably a typo.
    LabelTypo = "TP105" "label-typo" Warning,
    /// A label is used as if it were the name of a namespace.
    NameLabel = "TP106" "namespace-name-label" Warning,
    /// One peer has two selectors that match nothing together: two peers were probably meant.
    AndForOr = "TP107" "and-instead-of-or" Warning,
    /// Two peers have one selector each, of which one matches nothing: one peer with both was probably meant.
    OrForAnd = "TP108" "or-instead-of-and" Warning,
    /// A namespaceSelector matches a namespace only because its labels are not known.
    LabelsUnknown = "TP109" "namespace-labels-unknown" Note,
    /// A peer selects pods on the network of their node, which no selector matches.
    HostNetworkPeer = "TP110" "host-network-peer" Warning,
    /// A selector excludes values of a label that no pod has.
    ExcludesNothing = "TP111" "excludes-nothing" Note,
    /// Rules have no effect, since policyTypes does not name their direction.
    RulesWithoutType = "TP201" "rules-without-type" Warning,
    /// policyTypes names a direction that has no section: nothing is allowed there.
    TypeWithoutRules = "TP202" "type-without-rules" Warning,
    /// `egress: []` without policyTypes does not isolate for egress.
    EmptyEgress = "TP203" "empty-egress" Warning,
    /// An empty list of peers or ports matches everything.
    EmptyList = "TP204" "empty-list" Warning,
    /// A policy whose name says that it denies allows everything.
    DenyAllows = "TP205" "deny-allows-everything" Warning,
    /// A rule allows nothing that another rule does not allow.
    Shadowed = "TP206" "shadowed-rule" Warning,
    /// Two policies or two rules are the same.
    Duplicate = "TP207" "duplicate" Note,
    /// The policy selects pods on the network of their node, to which no policy applies.
    HostNetworkSubject = "TP208" "host-network-subject" Warning,
    /// The policy selects every pod of its namespace, though it seems to be for some of them.
    EmptySubject = "TP209" "selects-every-pod" Warning,
    /// A policy whose name says that it allows has no rule, and allows nothing.
    AllowDenies = "TP210" "allow-denies-everything" Warning,
    /// No pod has a port of this name.
    NoSuchPort = "TP301" "no-such-port-name" Warning,
    /// The port is that of a Service, not that of its pods.
    ServicePort = "TP302" "service-port" Warning,
    /// The pods have this port with another protocol.
    WrongProtocol = "TP303" "wrong-protocol" Warning,
    /// The pods declare ports, and this is none of them.
    UndeclaredPort = "TP304" "undeclared-port" Note,
    /// The name of a port is used for addresses, which have no named ports.
    NameForAddresses = "TP305" "port-name-for-addresses" Warning,
    /// A block has host bits set.
    HostBits = "TP401" "host-bits" Warning,
    /// A block covers addresses of pods.
    BlockCoversPods = "TP402" "block-covers-pods" Warning,
    /// An except is within another one.
    UselessExcept = "TP403" "useless-except" Note,
    /// The excepts leave nothing of their block.
    EmptyBlock = "TP404" "empty-block" Warning,
    /// What a block excepts is allowed by another peer or rule of the policy.
    ExceptAllowed = "TP405" "except-allowed-elsewhere" Warning,
    /// Only addresses of one family are allowed, and the pods have both.
    OneFamily = "TP406" "one-family" Note,
    /// No policy isolates some pods of a namespace that has policies or pods.
    NoDefaultDeny = "TP501" "no-default-deny" Note,
    /// Pods are isolated for egress, and cannot ask the cluster's DNS.
    NoDns = "TP502" "egress-without-dns" Warning,
    /// DNS is allowed over UDP, but not over TCP.
    DnsWithoutTcp = "TP503" "dns-without-tcp" Note,
    /// Pods that a rule lets in are not let out by their own policies.
    ClientEgress = "TP504" "client-egress-denied" Warning,
    /// Pods that a rule lets out to are not open to it by their own policies.
    ServerIngress = "TP505" "server-ingress-denied" Warning,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// Reads the number or the name of a code.
impl FromStr for Code {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|code| code.id().eq_ignore_ascii_case(text) || code.name() == text);
        found.copied().ok_or_else(|| CodeError(text.to_owned()))
    }
}

/// A text that is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the code of a finding, such as TP101")]
pub struct CodeError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ascending_and_read_back() {
        assert!(Code::ALL.windows(2).all(|pair| matches!(pair, [a, b] if a.id() < b.id())));
        for code in Code::ALL {
            assert_eq!((code.id().parse(), code.name().parse()), (Ok(*code), Ok(*code)));
            assert!(code.title().ends_with('.') && !code.title().starts_with(' '), "{}", code.title());
        }
        assert!("TP999".parse::<Code>().is_err());
    }
}
