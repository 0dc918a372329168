//! What can go wrong on the way to a target, in fixed words without a byte that a remote has sent.

use std::{fmt, io};

/// Why an attempt failed, in words without a byte that a remote has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Fault {
    Answered(u16),
    KeyRefused(u16),
    Puzzled,
    HostNotFound,
    ConnectionRefused,
    ConnectionBroken,
    TimedOut,
    Tls(TlsFault),
    HostUnreachable,
    DiskFull,
    PermissionDenied,
    ReadOnly,
    NotFound,
    Busy,
    TooLong,
    InputOutput,
    /// The server speaks TLS on a port that was contacted without it.
    HttpToTls,
    /// A disk does not accept what is written.
    Stalled,
    /// A file cannot be opened or made.
    NotOpened,
    /// A database is damaged, or of another version.
    Database,
    /// A 2xx status that does not mean success of this request.
    NotUnderstood(u16),
    /// Like [`HttpToTls`](Self::HttpToTls), for a stream of records.
    PlainToTls,
    /// There is a link, a pipe, a directory or a file with a second name where a plain file belongs.
    NotPlain,
    /// An answer that cannot be read, as one with the status 000.
    Unreadable,
}

impl Fault {
    /// Its number in shared memory; never 0.
    pub fn pack(self) -> u32 {
        let (kind, code) = match self {
            Self::Answered(code) => (1, code),
            Self::KeyRefused(code) => (2, code),
            Self::Puzzled => (3, 0),
            Self::HostNotFound => (4, 0),
            Self::ConnectionRefused => (5, 0),
            Self::ConnectionBroken => (6, 0),
            Self::TimedOut => (7, 0),
            Self::Tls(fault) => (8, fault as u16),
            Self::HostUnreachable => (9, 0),
            Self::DiskFull => (10, 0),
            Self::PermissionDenied => (11, 0),
            Self::ReadOnly => (12, 0),
            Self::NotFound => (13, 0),
            Self::Busy => (14, 0),
            Self::TooLong => (15, 0),
            Self::InputOutput => (16, 0),
            Self::HttpToTls => (17, 0),
            Self::Stalled => (18, 0),
            Self::NotOpened => (19, 0),
            Self::Database => (20, 0),
            Self::NotUnderstood(code) => (40, code),
            Self::PlainToTls => (41, 0),
            Self::NotPlain => (42, 0),
            Self::Unreadable => (43, 0),
        };
        kind << 16 | u32::from(code)
    }

    /// The fault of that number.
    pub fn unpack(packed: u32) -> Option<Self> {
        let code = packed as u16;
        Some(match packed >> 16 {
            1 => Self::Answered(code),
            2 => Self::KeyRefused(code),
            3 => Self::Puzzled,
            4 => Self::HostNotFound,
            5 => Self::ConnectionRefused,
            6 => Self::ConnectionBroken,
            7 => Self::TimedOut,
            8 => Self::Tls(TlsFault::from_number(code)?),
            9 => Self::HostUnreachable,
            10 => Self::DiskFull,
            11 => Self::PermissionDenied,
            12 => Self::ReadOnly,
            13 => Self::NotFound,
            14 => Self::Busy,
            15 => Self::TooLong,
            16 => Self::InputOutput,
            17 => Self::HttpToTls,
            18 => Self::Stalled,
            19 => Self::NotOpened,
            20 => Self::Database,
            40 => Self::NotUnderstood(code),
            41 => Self::PlainToTls,
            42 => Self::NotPlain,
            43 => Self::Unreadable,
            _ => return None,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(code) => write!(f, "answered {code}"),
            Self::KeyRefused(code) => write!(f, "API key refused with {code}"),
            Self::Puzzled => f.write_str("answered 200 to several events in a row"),
            Self::HostNotFound => f.write_str("host not found"),
            Self::ConnectionRefused => f.write_str("connection refused"),
            Self::ConnectionBroken => f.write_str("connection broken"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Tls(fault) => fault.fmt(f),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::DiskFull => f.write_str("disk full"),
            Self::PermissionDenied => f.write_str("permission denied"),
            Self::ReadOnly => f.write_str("read-only file system"),
            Self::NotFound => f.write_str("no such file or directory"),
            Self::Busy => f.write_str("held by another process"),
            Self::TooLong => f.write_str("message too long"),
            Self::InputOutput => f.write_str("input/output error"),
            Self::HttpToTls => {
                f.write_str("the server speaks TLS on this port, write \"https://\" in \"url\"")
            }
            Self::Stalled => f.write_str("no answer from the disk"),
            Self::NotOpened => f.write_str("the file cannot be opened or made"),
            Self::Database => f.write_str("the database is damaged or of another version"),
            Self::NotUnderstood(code) => write!(f, "answered {code}, which is not understood"),
            Self::PlainToTls => {
                f.write_str("the server speaks TLS on this port, set \"transport tls\"")
            }
            Self::NotPlain => {
                f.write_str("a link, a pipe or a directory lies where a plain file belongs")
            }
            Self::Unreadable => f.write_str("the answer cannot be read"),
        }
    }
}

/// Why a TLS handshake failed, in fixed words without a byte that the server has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum TlsFault {
    Certificate = 1,
    WrongName,
    NoName,
    Expired,
    NotYetValid,
    UnknownIssuer,
    SelfSigned,
    Version1,
    SignatureAlgorithm,
    KeyAlgorithm,
    NotForServers,
    NothingInCommon,
    ClientCertificateWanted,
    ClientCertificateRefused,
    NotTls,
}

impl TlsFault {
    /// All of them; a fault's number is its index here plus one.
    pub const ALL: [Self; 15] = [
        Self::Certificate,
        Self::WrongName,
        Self::NoName,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownIssuer,
        Self::SelfSigned,
        Self::Version1,
        Self::SignatureAlgorithm,
        Self::KeyAlgorithm,
        Self::NotForServers,
        Self::NothingInCommon,
        Self::ClientCertificateWanted,
        Self::ClientCertificateRefused,
        Self::NotTls,
    ];

    /// The fault of that number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| *fault as u16 == number)
    }
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate not accepted: it cannot be read or is not signed well",
            Self::WrongName => {
                "certificate not accepted: it is for another name than the host in \"url\" or \
                 \"server\""
            }
            Self::NoName => {
                "certificate not accepted: it has no subjectAltName, issue one that names the host \
                 there"
            }
            Self::Expired => "certificate not accepted: it has expired",
            Self::NotYetValid => {
                "certificate not accepted: it is not valid yet, compare the clocks of both machines"
            }
            Self::UnknownIssuer => {
                "certificate not accepted: its issuer is unknown, name the issuer's certificate in \
                 \"ssl_trusted_certificate\""
            }
            Self::SelfSigned => {
                "certificate not accepted: it is self-signed, name it in \"ssl_trusted_certificate\""
            }
            Self::Version1 => {
                "certificate not accepted: it is X.509 version 1, issue one of version 3"
            }
            Self::SignatureAlgorithm => {
                "certificate not accepted: it is signed with an unsupported algorithm, issue one \
                 signed with RSA, ECDSA P-256 with SHA-256, P-384 with SHA-384, or Ed25519, or name \
                 this very one in \"ssl_trusted_certificate\""
            }
            Self::KeyAlgorithm => {
                "certificate not accepted: its key is of an unsupported algorithm, use RSA, P-256, \
                 P-384 or Ed25519"
            }
            Self::NotForServers => {
                "certificate not accepted: its extended key usage does not allow servers"
            }
            Self::NothingInCommon => {
                "no common TLS version, cipher suite or kind of key: the server must offer TLS 1.3, or TLS \
                 1.2 with ECDHE and AES-GCM or ChaCha20, and a certificate with a key of RSA, P-256, P-384 \
                 or Ed25519"
            }
            Self::ClientCertificateWanted => {
                "the server demands a client certificate, set \"ssl_certificate\" and \
                 \"ssl_certificate_key\""
            }
            Self::ClientCertificateRefused => {
                "the server refuses the client certificate in \"ssl_certificate\""
            }
            Self::NotTls => {
                "the server does not speak TLS on this port, correct the port or the scheme in \
                 \"url\", or \"transport\""
            }
        })
    }
}

impl std::error::Error for TlsFault {}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::*;
        match error.kind() {
            ConnectionRefused => Self::ConnectionRefused,
            TimedOut | WouldBlock => Self::TimedOut,
            HostUnreachable | NetworkUnreachable => Self::HostUnreachable,
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull,
            PermissionDenied => Self::PermissionDenied,
            ReadOnlyFilesystem => Self::ReadOnly,
            NotFound => Self::NotFound,
            ResourceBusy => Self::Busy,
            // This module itself reports a pipe or a second name so, and the system reports a link so.
            InvalidInput | IsADirectory => Self::NotPlain,
            _ if error.raw_os_error() == Some(libc::ELOOP) => Self::NotPlain,
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => Self::TooLong,
            ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected | UnexpectedEof => {
                Self::ConnectionBroken
            }
            _ => Self::InputOutput,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers() {
        for (place, fault) in TlsFault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, place + 1);
            assert_eq!(TlsFault::from_number(fault as u16), Some(fault));
        }
        assert_eq!(TlsFault::from_number(0), None);
    }

    #[test]
    fn faults_survive_packing() {
        for fault in [
            Fault::Answered(503),
            Fault::KeyRefused(401),
            Fault::Puzzled,
            Fault::HostNotFound,
            Fault::ConnectionRefused,
            Fault::ConnectionBroken,
            Fault::TimedOut,
            Fault::Tls(TlsFault::Expired),
            Fault::HttpToTls,
            Fault::HostUnreachable,
            Fault::Stalled,
            Fault::NotOpened,
            Fault::Database,
            Fault::NotUnderstood(202),
            Fault::PlainToTls,
            Fault::NotPlain,
            Fault::Unreadable,
        ] {
            assert_eq!(Fault::unpack(fault.pack()), Some(fault));
        }
        assert_eq!(Fault::unpack(0), None);
    }
}
