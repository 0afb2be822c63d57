use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;

type Waits = Pin<Box<dyn Future<Output = Result<Place, Closed>>>>;

fn tenant(number: usize) -> Tenant {
    Tenant::new(&format!("t{number}")).unwrap()
}

fn poll(waits: &mut Waits) -> Poll<Result<Place, Closed>> {
    waits.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// What it gets at once, or what it waits for.
fn ask(places: &Places, number: usize) -> Result<Place, Waits> {
    let places = places.clone();
    let mut waits: Waits = Box::pin(async move { places.take(&tenant(number)).await });
    match poll(&mut waits) {
        Poll::Ready(given) => Ok(given.unwrap()),
        Poll::Pending => Err(waits),
    }
}

/// All that a tenant gets without waiting.
fn all(places: &Places, number: usize) -> Vec<Place> {
    std::iter::from_fn(|| ask(places, number).ok()).collect()
}

fn given(waits: &mut Waits) -> Option<Place> {
    match poll(waits) {
        Poll::Ready(given) => Some(given.unwrap()),
        Poll::Pending => None,
    }
}

#[test]
fn alone_on_a_connection_a_tenant_has_all_of_it() {
    let places = Places::new(8, false);
    let mut mine = all(&places, 1);
    assert_eq!(mine.len(), 8);
    let mut waits = ask(&places, 1).unwrap_err();
    assert!(given(&mut waits).is_none());
    mine.pop();
    assert!(given(&mut waits).is_some());
    assert_eq!(all(&Places::new(0, true), 1).len(), 1, "there is always one");
}

/// However many take all they get and give nothing back, the next one gets something as long as there is anything.
#[test]
fn those_who_take_all_they_get_leave_something_to_the_next() {
    let places = Places::new(64, true);
    let taken: Vec<Vec<Place>> = (0..6).map(|number| all(&places, number)).collect();
    let counts: Vec<usize> = taken.iter().map(Vec::len).collect();
    assert_eq!(counts, [32, 16, 8, 4, 2, 1]);
    assert_eq!(all(&places, 6).len(), 1);
}

#[test]
fn what_becomes_free_goes_to_whoever_has_the_fewest() {
    let places = Places::new(4, true);
    let mut loud = all(&places, 1);
    let second = all(&places, 2);
    let third = all(&places, 3);
    assert_eq!((loud.len(), second.len(), third.len()), (2, 1, 1));
    let mut more = ask(&places, 1).unwrap_err();
    let mut late = ask(&places, 4).unwrap_err();
    loud.pop();
    assert!(given(&mut more).is_none(), "it asked first, and has more");
    assert!(given(&mut late).is_some());
}

#[test]
fn one_place_goes_round() {
    let places = Places::new(1, true);
    let mut mine = all(&places, 1).pop();
    let (mut other, mut again) = (ask(&places, 2).unwrap_err(), ask(&places, 1).unwrap_err());
    for _ in 0..3 {
        drop(mine.take());
        assert!(given(&mut again).is_none(), "the other has waited for longer");
        drop(given(&mut other).expect("its turn"));
        mine = given(&mut again);
        assert!(mine.is_some());
        (other, again) = (ask(&places, 2).unwrap_err(), ask(&places, 1).unwrap_err());
    }
}

#[test]
fn whoever_gave_up_waiting_is_in_nobodys_way() {
    let places = Places::new(1, false);
    let mine = ask(&places, 1).ok();
    let (gone, mut next) = (ask(&places, 1).unwrap_err(), ask(&places, 1).unwrap_err());
    drop(gone);
    drop(mine);
    let given = given(&mut next).expect("the place");
    // And one that was given, and never looked at, is free again.
    let unseen = ask(&places, 1).unwrap_err();
    drop(given);
    drop(unseen);
    assert!(ask(&places, 2).is_ok());
    assert!(places.taken().of.is_empty(), "who has nothing is forgotten");
}

#[test]
fn a_connection_that_is_over_has_no_places() {
    let places = Places::new(1, true);
    let mine = ask(&places, 1).ok();
    let mut waits = ask(&places, 1).unwrap_err();
    places.close();
    assert!(matches!(poll(&mut waits), Poll::Ready(Err(Closed))));
    drop(mine);
    let mut late: Waits = Box::pin(async move { places.take(&tenant(1)).await });
    assert!(matches!(poll(&mut late), Poll::Ready(Err(Closed))));
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize),
    GiveBack(usize),
    GiveUp(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5_usize).prop_map(Step::Ask),
        2 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::GiveUp),
    ]
}

proptest! {
    /// Places are neither made nor lost, and nobody waits who may have one.
    #[test]
    fn every_place_is_free_or_somebodys(
        count in 1..20_usize,
        shared in any::<bool>(),
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let places = Places::new(count, shared);
        let mut held: Vec<Place> = Vec::new();
        let mut waiting: Vec<(usize, Waits)> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(number) => match ask(&places, number) {
                    Ok(place) => held.push(place),
                    Err(waits) => waiting.push((number, waits)),
                },
                Step::GiveBack(which) if !held.is_empty() => {
                    let which = which % held.len();
                    drop(held.swap_remove(which));
                }
                Step::GiveUp(which) if !waiting.is_empty() => {
                    let which = which % waiting.len();
                    drop(waiting.swap_remove(which));
                }
                _ => {}
            }
            let mut still = Vec::new();
            for (number, mut waits) in waiting {
                match given(&mut waits) {
                    Some(place) => held.push(place),
                    None => still.push((number, waits)),
                }
            }
            waiting = still;
            let taken = places.taken();
            prop_assert_eq!(taken.free + held.len(), count);
            for (number, _) in &waiting {
                let has = held.iter().filter(|place| place.of == tenant(*number)).count();
                prop_assert!(!taken.admits(has), "{} has {} of {}, and waits", number, has, count);
            }
        }
        drop((held, waiting));
        prop_assert_eq!(places.taken().free, count);
        prop_assert!(places.taken().of.values().all(|of| of.places == 0));
    }
}
