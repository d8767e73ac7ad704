//! The barriers of the image formats by name, so that tests can tell what each is for: the model of power losses leaves
//! out one after the other, and must find that missing.

/// Where completed writes are made stable before something else may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Barrier {
    /// The header without features that are not kept up to date, before anything else changes.
    Autoclear,
    /// Data and refcounts, before a table names the clusters.
    Counts,
    /// The refcount table, before a table names clusters that its new blocks count.
    Reftable,
    /// A refcount table at a new place, before the header names it.
    ReftableMoved,
    /// The header that names a new refcount table, before a table names clusters that it alone counts.
    ReftableNamed,
    /// L2 tables, before the L1 table names them.
    Tables,
    /// All tables, before a flush is answered, and before clusters that they do not name any more are used anew.
    Published,
    /// A larger L1 table at its new place, before the header names it.
    L1Moved,
    /// The header with a new size, before anyone hears of it.
    Size,
    /// A flush of an image without changed tables.
    Flush,
    /// Zeros in an image whose writes are stable at once.
    Zeroed,
}

impl Barrier {
    /// All of them.
    #[cfg(test)]
    pub(in crate::storage) const ALL: [Self; 11] = [
        Self::Autoclear,
        Self::Counts,
        Self::Reftable,
        Self::ReftableMoved,
        Self::ReftableNamed,
        Self::Tables,
        Self::Published,
        Self::L1Moved,
        Self::Size,
        Self::Flush,
        Self::Zeroed,
    ];

    /// The name in recordings.
    #[cfg(any(test, feature = "testing"))]
    pub(in crate::storage) fn name(self) -> &'static str {
        match self {
            Self::Autoclear => "autoclear",
            Self::Counts => "counts",
            Self::Reftable => "reftable",
            Self::ReftableMoved => "reftable-moved",
            Self::ReftableNamed => "reftable-named",
            Self::Tables => "tables",
            Self::Published => "published",
            Self::L1Moved => "l1-moved",
            Self::Size => "size",
            Self::Flush => "flush",
            Self::Zeroed => "zeroed",
        }
    }
}
