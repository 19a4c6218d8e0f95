//! Addresses as maps hold them.

use core::net::{IpAddr, Ipv6Addr};

/// 16 bytes in network order, as four words: the kernel reads addresses word by word. IPv4 is `::ffff:a.b.c.d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// No address.
    pub const NONE: Self = Self([0; 4]);

    const MAPPED: u32 = 0xffff_u32.to_be();

    /// From the four bytes of an IPv4 address, in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// Whether it is an IPv4 address, native or v4-mapped.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// Whether it says nothing: `::`, `0.0.0.0`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[3] == 0 && (self.0[2] == 0 || self.0[2] == Self::MAPPED)
    }

    /// Whether it means this host: 127.0.0.0/8, `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr> for IpAddr {
    /// A v4-mapped address becomes IPv4.
    fn from(addr: Addr) -> Self {
        let mut octets = [0; 16];
        for (i, word) in addr.0.iter().enumerate() {
            octets[i * 4..i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}
