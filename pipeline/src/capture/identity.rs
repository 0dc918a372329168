//! By what evidence the user of an event is known.

/// The evidence, from none to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Identity {
    /// Nothing tells who it is.
    #[default]
    None,
    /// The client says so, and nobody has checked it.
    Claim,
    /// The application was asked whose token the request carries.
    Lookup,
    /// The request carries a session's token, and an answer told whose that is.
    Session,
    /// The response itself names the user.
    Answer,
}

impl Identity {
    /// All kinds of evidence; a kind's place here is its number in a record.
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

    /// Whether the application, and not the client, is behind it.
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
