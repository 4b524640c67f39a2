//! Which addresses belong to the public network. Lists and pages are written by strangers: an
//! address in them must not make this program speak to a service beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Whether an address may be asked: it is public, or in one of the networks that the plan allows.
pub(crate) fn is_allowed(address: IpAddr, networks_allowed: &[IpNet]) -> bool {
    let address = address.to_canonical();
    is_public(address) || networks_allowed.iter().any(|network| network.contains(&address))
}

/// Whether an address is of the public unicast network: the registries of special-purpose addresses
/// (RFC 6890 and its successors) name what is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let bytes = address.octets();
    let v4_at = |i: usize| Ipv4Addr::new(bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]);
    match (a, b) {
        // Addresses that lead to one of version 4: mapped, NAT64 and 6to4.
        (0, 0) => address.to_ipv4_mapped().is_some_and(is_public_v4),
        (0x0064, 0xff9b) => bytes[4..12] == [0; 8] && is_public_v4(v4_at(12)),
        (0x2002, _) => is_public_v4(v4_at(2)),
        // Protocol assignments with Teredo, and documentation.
        (0x2001, 0..=0x01ff | 0x0db8) | (0x3fff, 0..=0x0fff) => false,
        // Everything public is in 2000::/3.
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        let private = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "100::1",
        ];
        for address in private {
            assert!(!is_allowed(address.parse().unwrap(), &[]), "{address}");
        }
        let public = [
            "1.1.1.1",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2606:4700::1111",
            "2a00:1450::1",
        ];
        for address in public {
            assert!(is_allowed(address.parse().unwrap(), &[]), "{address}");
        }
    }

    #[test]
    fn a_plan_may_allow_a_network() {
        let networks = ["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let check = |address: &str, expected| {
            assert_eq!(is_allowed(address.parse().unwrap(), &networks), expected, "{address}");
        };
        check("10.1.2.3", true);
        check("::ffff:10.1.2.3", true);
        check("10.2.0.1", false);
        check("fd00::9", true);
        check("fd01::9", false);
    }
}
