//! Space for a blob on its way in: all of it at once, or where that would cost too much or nobody knows how much it is, in strides.

use std::sync::Arc;

use super::super::lru::charge;
use super::super::room::{NoRoom, Sake};
use super::super::{Shared, lock};
use super::partial::PartialFile;
use super::{BlobWriter, Bypass, Target};

/// So much may be set aside beyond what has come.
const STRIDE: u64 = 64 << 20;

/// How much is to be set aside in all, and for the sake of what.
pub(super) type Stride = (u64, Sake);

impl BlobWriter {
    /// Says how large the blob will be, as soon as the upstream has said so, and sets space aside for it.
    pub async fn expect(&mut self, size: u64) {
        self.size = Some(size);
        self.growing.set_size(size);
        let Target::File(partial) = &self.target else { return };
        let partial = Arc::clone(partial);
        match reserve(&self.store, &partial, (charge(size), self.sake(Sake::Announced))).await {
            Ok(()) => self.to_allocate = Some(size),
            // Then space is set aside as it comes.
            Err(NoRoom::NotYet) => {}
            Err(why) => self.bypass(Bypass::of(why, &self.store)),
        }
    }

    /// How much is to be set aside where `end` bytes have come and there is no space for them, the best first.
    pub(super) fn next_strides(&self, end: u64) -> [Stride; 3] {
        let (enough, most) = (charge(end), charge(self.size.unwrap_or(u64::MAX)));
        let ahead = |bytes| enough.saturating_add(bytes).min(most);
        // Who sends little costs little of what has been used again.
        [(STRIDE, Sake::Announced), (end.min(STRIDE), Sake::Come), (0, Sake::Come)]
            .map(|(bytes, sake)| (ahead(bytes), self.sake(sake)))
    }

    /// For the sake of what room is made, where an upstream sends something that nobody has ordered.
    fn sake(&self, of_sent: Sake) -> Sake {
        let is_ordered = !self.sent || lock(&self.store.books).lru.is_kept(&self.digest);
        if is_ordered { Sake::Ordered } else { of_sent }
    }
}

/// Sets aside what is lacking of the first of these that can be had.
pub(super) async fn reserve_first(store: &Arc<Shared>, partial: &PartialFile, strides: [Stride; 3]) -> Result<(), Bypass> {
    let mut why = NoRoom::Full;
    for stride in strides {
        match reserve(store, partial, stride).await {
            Ok(()) => return Ok(()),
            // Asked once more it would hang once more.
            Err(NoRoom::Disk(error)) => return Err(store.disk_failed("space", &error)),
            Err(error) => why = error,
        }
    }
    Err(Bypass::of(why, store))
}

/// Sets aside what is lacking of these bytes.
async fn reserve(store: &Arc<Shared>, partial: &PartialFile, (total, sake): Stride) -> Result<(), NoRoom> {
    partial.add(store.reserve(total.saturating_sub(partial.reserved()), sake).await?);
    Ok(())
}

impl Bypass {
    fn of(why: NoRoom, store: &Shared) -> Self {
        match why {
            NoRoom::TooLarge => Self::TooLarge,
            NoRoom::Full | NoRoom::NotYet => Self::Full,
            NoRoom::Over => Self::Over,
            NoRoom::Disk(error) => store.disk_failed("space", &error),
        }
    }
}
