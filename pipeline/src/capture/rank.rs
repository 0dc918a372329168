//! How important an event is if there is no room for all.

use crate::capture::identity::Identity;
use crate::event::EventType;

/// The rank of an event; `One` is kept the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rank {
    /// Successful logins, logouts, changes of accounts.
    One = 1,
    /// Changes of content.
    Two = 2,
    /// Failed logins, and events of higher ranks whose user is not proven.
    Three = 3,
    /// Page views and searches.
    Four = 4,
}

impl Rank {
    /// All ranks, the highest first.
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Three, Self::Four];

    /// The rank of an event with the type that the rule names, before a status makes it an error. Events
    /// without a proven user have rank 3 at the most.
    pub fn of(kind: EventType, identity: Identity) -> Self {
        let rank = match kind {
            EventType::AccountLogin
            | EventType::AccountLogout
            | EventType::AccountRegistration
            | EventType::AccountEmailChange
            | EventType::AccountPasswordChange
            | EventType::AccountEdit => Self::One,
            EventType::PageEdit | EventType::PageDelete | EventType::FieldEdit => Self::Two,
            EventType::AccountLoginFail => Self::Three,
            EventType::PageView | EventType::PageSearch | EventType::PageError => Self::Four,
        };
        if identity.is_proof() { rank } else { rank.max(Self::Three) }
    }

    /// Its index in arrays with one element for each rank.
    pub fn place(self) -> usize {
        self as usize - 1
    }

    /// The rank of that number in a record.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|rank| *rank as u8 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proof_gives_a_high_rank() {
        for identity in Identity::ALL {
            let login = Rank::of(EventType::AccountLogin, identity);
            assert_eq!(login == Rank::One, identity.is_proof(), "{identity:?}");
            assert_eq!(Rank::of(EventType::PageView, identity), Rank::Four);
            assert_eq!(Rank::of(EventType::AccountLoginFail, identity), Rank::Three);
        }
        assert_eq!(Rank::from_number(2), Some(Rank::Two));
        assert_eq!(Rank::from_number(0), None);
    }
}
