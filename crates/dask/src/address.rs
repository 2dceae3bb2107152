//! Where a scheduler listens.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Tcp,
    /// TLS from the first byte.
    Tls,
}

/// The address of a Dask server: `tcp://host:port`, `tls://host:port` or `host:port` (plain TCP).
///
/// IPv6 hosts are written in brackets and kept without them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    scheme: Scheme,
    host: String,
    port: u16,
}

impl Address {
    /// An address from its parts; the host is a name or an IP address without brackets.
    pub fn new(scheme: Scheme, host: &str, port: u16) -> Result<Address, Error> {
        let bad = |reason: &str| Err(Error::Address { text: clipped(host), reason: reason.to_owned() });
        if host.is_empty() || host.len() > 253 {
            return bad("the host must have 1 to 253 characters");
        }
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:%".contains(&b)) {
            return bad("the host has characters that no host name or IP address has");
        }
        if port == 0 {
            return bad("the port must be 1 to 65535");
        }
        Ok(Address { scheme, host: host.to_owned(), port })
    }

    /// How the bytes travel.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host name or IP address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address, Error> {
        let bad = |reason: &str| Error::Address { text: clipped(text), reason: reason.to_owned() };
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Tcp, text),
            Some(("tcp", rest)) => (Scheme::Tcp, rest),
            Some(("tls", rest)) => (Scheme::Tls, rest),
            Some(_) => return Err(bad("the scheme must be tcp:// or tls://")),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("a port is missing, as in tcp://host:8786"))?;
        let port = port.parse().map_err(|_| bad("the port must be 1 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(|| bad("a closing ] is missing"))?,
            None if host.contains(':') => return Err(bad("an IPv6 address must stand in brackets")),
            None => host,
        };
        Address::new(scheme, host, port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        for (text, printed) in [
            ("tcp://dask-scheduler.ns.svc:8786", "tcp://dask-scheduler.ns.svc:8786"),
            ("tls://10.0.0.1:8786", "tls://10.0.0.1:8786"),
            ("localhost:1", "tcp://localhost:1"),
            ("tcp://[::1]:8786", "tcp://[::1]:8786"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).ok().as_deref(), Some(printed), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for text in [
            "",
            "host",
            "tcp://host",
            "ucx://host:1",
            "host:0",
            "host:65536",
            "::1:80",
            "[::1:80",
            "a b:1",
            "tcp://:80",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
