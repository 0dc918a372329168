//! The evidence for the user of an event.

/// The evidence, from none to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Identity {
    /// There is none.
    #[default]
    None,
    /// The client claims to be the user, and nobody has checked that.
    Claim,
    /// The application was asked which user the request's token belongs to.
    Lookup,
    /// The request carries a session's token, and an earlier answer named its user.
    Session,
    /// The response itself names the user.
    Answer,
}

impl Identity {
    /// All kinds of evidence; a record holds a kind as its index here.
    pub const ALL: [Self; 5] = [Self::None, Self::Claim, Self::Lookup, Self::Session, Self::Answer];

    /// Its name in audit records, in `$tirreno_identity` and in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Claim => "claim",
            Self::Lookup => "lookup",
            Self::Session => "session",
            Self::Answer => "answer",
        }
    }

    /// The evidence of that number in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether it comes from the application, and not from the client.
    pub fn is_proof(self) -> bool {
        self >= Self::Lookup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers() {
        for (number, identity) in Identity::ALL.into_iter().enumerate() {
            assert_eq!(Identity::from_number(number as u8), Some(identity));
        }
        assert_eq!(Identity::from_number(5), None);
        assert!(Identity::Lookup.is_proof() && !Identity::Claim.is_proof());
    }
}
