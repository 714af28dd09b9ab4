//! Which interface is in which NIC slot, and what is to change about that: a pure decision.

use super::survey::Found;

/// An interface that a slot carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name, when it was put into the slot.
    pub name: String,
}

/// Of a VM with so many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots(Vec<Option<Carried>>);

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The interface of this slot has gone.
    Empty(u8),
    /// This interface is new.
    Fill(u8, Carried),
    /// There is no slot for this one.
    NoRoom(String),
}

impl Slots {
    /// Empty slots.
    pub fn new(count: u8) -> Self {
        Self(vec![None; count.into()])
    }

    /// What a slot carries.
    pub fn get(&self, slot: u8) -> Option<&Carried> {
        self.0.get(usize::from(slot))?.as_ref()
    }

    /// Notes what a slot carries from now on.
    pub fn set(&mut self, slot: u8, carried: Option<Carried>) {
        if let Some(place) = self.0.get_mut(usize::from(slot)) {
            *place = carried;
        }
    }

    /// The slot of an interface.
    pub fn slot_of(&self, index: u32) -> Option<u8> {
        let is_it = |carried: &Option<Carried>| carried.as_ref().is_some_and(|c| c.index == index);
        self.0.iter().position(is_it).map(|slot| slot as u8)
    }

    /// The numbers of all interfaces that are carried.
    pub fn carried(&self) -> Vec<u32> {
        self.0.iter().flatten().map(|c| c.index).collect()
    }

    /// From what is carried to what there is. A slot that becomes empty is used again at once.
    pub fn plan(&self, found: &[Found]) -> Vec<Step> {
        let is_there = |carried: &Carried| found.iter().any(|f| f.index == carried.index);
        let (mut steps, mut free) = (Vec::new(), Vec::new());
        for (slot, carried) in (0u8..).zip(&self.0) {
            match carried {
                Some(carried) if is_there(carried) => {}
                Some(_) => {
                    steps.push(Step::Empty(slot));
                    free.push(slot);
                }
                None => free.push(slot),
            }
        }
        let mut free = free.into_iter();
        let new = found.iter().filter(|f| self.slot_of(f.index).is_none());
        steps.extend(new.map(|found| {
            let name = found.wire.name.clone();
            match free.next() {
                Some(slot) => Step::Fill(
                    slot,
                    Carried {
                        index: found.index,
                        name,
                    },
                ),
                None => Step::NoRoom(name),
            }
        }));
        steps
    }
}

#[cfg(test)]
mod tests {
    use vmbox_protocol::agent::Interface;

    use super::*;

    fn found(index: u32) -> Found {
        Found {
            index,
            wire: Interface {
                name: format!("eth{index}"),
                ..Default::default()
            },
        }
    }

    fn carried(index: u32) -> Carried {
        Carried {
            index,
            name: format!("eth{index}"),
        }
    }

    #[test]
    fn new_interfaces_take_the_first_free_slots() {
        let mut slots = Slots::new(3);
        slots.set(0, Some(carried(2)));
        let steps = slots.plan(&[found(2), found(5), found(7), found(9)]);
        let expected = [
            Step::Fill(1, carried(5)),
            Step::Fill(2, carried(7)),
            Step::NoRoom("eth9".into()),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn what_has_gone_makes_room_first() {
        let mut slots = Slots::new(1);
        slots.set(0, Some(carried(2)));
        let steps = slots.plan(&[found(3)]);
        assert_eq!(steps, [Step::Empty(0), Step::Fill(0, carried(3))]);
    }

    #[test]
    fn nothing_changes_when_nothing_has() {
        let mut slots = Slots::new(2);
        slots.set(1, Some(carried(2)));
        assert!(slots.plan(&[found(2)]).is_empty());
        assert_eq!(slots.slot_of(2), Some(1));
        assert_eq!(slots.carried(), [2]);
    }
}
