//! Who has a turn at the engine: its own thread, or threads that wait for something.
//!
//! Owns the book of who is there. The thread is at home and leaves while guests (threads that wait)
//! drive in its stead; where one wait follows another it stays out between them. Of the guests one
//! at a time sleeps on the descriptors. Knows nothing of the engine. Invariants: with nobody else
//! the thread is back within [`PAUSE`] and [`LOOK`], and at once when operations are under way; the
//! thread and a guest never sleep on the descriptors at the same time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How soon after its last wait a guest comes back where one wait follows another.
const PAUSE: Duration = Duration::from_micros(200);

/// How often the thread looks whether guests still come and go like that.
const LOOK: Duration = Duration::from_micros(400);

/// Longest wait for the thread to get up.
const GET_UP_MAX: Duration = Duration::from_millis(20);

pub(super) struct Seats {
    book: Mutex<Book>,
    changed: Condvar,
}

struct Book {
    /// The thread drives, or is asleep on the descriptors.
    home: bool,
    /// Threads that wait and drive.
    guests: usize,
    /// A guest sleeps on the descriptors, or is about to.
    asleep: bool,
    /// When the last guest left.
    left: Instant,
    /// The present guests, or the last ones, came soon after those before.
    again: bool,
    ended: bool,
}

impl Seats {
    pub(super) fn new() -> Self {
        let left = Instant::now();
        let book = Book { home: true, guests: 0, asleep: false, left, again: false, ended: false };
        Self { book: Mutex::new(book), changed: Condvar::new() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest comes; `is_busy` tells, when it leaves, whether somebody must go on at once.
    pub(super) fn sit_down<F: Fn() -> bool>(&self, now: Instant, is_busy: F) -> Seat<'_, F> {
        let mut book = self.book();
        if book.guests == 0 {
            book.again = now.saturating_duration_since(book.left) < PAUSE;
        }
        book.guests += 1;
        Seat { seats: self, is_busy, seen: now }
    }

    /// A guest wants to sleep on the descriptors; `rouse` ends the thread's sleep there. None where
    /// another guest sleeps, or the thread does not get up.
    pub(super) fn lie_down(&self, rouse: impl Fn()) -> Option<Bed<'_>> {
        let mut book = self.book();
        if book.asleep || book.ended {
            return None;
        }
        book.asleep = true;
        let bed = Bed { seats: self };
        let until = Instant::now() + GET_UP_MAX;
        while book.home && !book.ended {
            if Instant::now() >= until {
                drop(book);
                return None;
            }
            // The thread may be on its way to sleep, so once is not enough.
            drop(book);
            rouse();
            book = self.book();
            if book.home {
                book = self.wait(book, LOOK);
            }
        }
        drop(book);
        Some(bed)
    }

    /// The thread leaves the engine to guests until it is needed again; whether it was away.
    pub(super) fn stay_out(&self, is_busy: impl Fn() -> bool) -> bool {
        let mut book = self.book();
        if book.guests == 0 {
            return false;
        }
        book.home = false;
        self.changed.notify_all();
        while !book.ended {
            book = match (book.guests, book.again) {
                (0, false) => break,
                (0, true) if is_busy() || book.left.elapsed() >= PAUSE => break,
                // Whoever leaves will say so.
                (1.., false) => self.changed.wait(book).unwrap_or_else(PoisonError::into_inner),
                (_, true) => self.wait(book, LOOK),
            };
        }
        book.home = true;
        true
    }

    /// Operations are under way: the thread is to go on with them unless a guest does.
    pub(super) fn call(&self) {
        let book = self.book();
        if !book.home && book.guests == 0 {
            self.changed.notify_all();
        }
    }

    /// Nobody is to wait for anybody any more.
    pub(super) fn end(&self) {
        self.book().ended = true;
        self.changed.notify_all();
    }

    fn wait<'a>(&self, book: MutexGuard<'a, Book>, at_most: Duration) -> MutexGuard<'a, Book> {
        match self.changed.wait_timeout(book, at_most) {
            Ok((book, _)) => book,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }
}

/// A guest that drives.
pub(super) struct Seat<'a, F: Fn() -> bool> {
    seats: &'a Seats,
    is_busy: F,
    /// When it last looked at the clock: what it leaves at, give or take a few turns.
    seen: Instant,
}

impl<F: Fn() -> bool> Seat<'_, F> {
    pub(super) fn seen(&mut self, now: Instant) {
        self.seen = now;
    }
}

impl<F: Fn() -> bool> Drop for Seat<'_, F> {
    fn drop(&mut self) {
        let mut book = self.seats.book();
        book.guests = book.guests.saturating_sub(1);
        if book.guests > 0 {
            return;
        }
        book.left = book.left.max(self.seen);
        let wanted = !book.home && (!book.again || (self.is_busy)());
        drop(book);
        if wanted {
            self.seats.changed.notify_all();
        }
    }
}

/// A guest that sleeps on the descriptors.
pub(super) struct Bed<'a> {
    seats: &'a Seats,
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        self.seats.book().asleep = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// The thread's life: at home it "sleeps" until it is roused.
    fn thread(seats: &Seats, roused: &AtomicBool, stopped: &AtomicBool, sleeping: &AtomicUsize) {
        while !stopped.load(Ordering::SeqCst) {
            if !seats.stay_out(|| false) {
                sleeping.fetch_add(1, Ordering::SeqCst);
                while !roused.swap(false, Ordering::SeqCst) && !stopped.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                sleeping.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    #[test]
    fn one_at_a_time_sleeps_and_the_thread_comes_back() {
        let (seats, roused) = (Seats::new(), AtomicBool::new(false));
        let (stopped, sleeping) = (AtomicBool::new(false), AtomicUsize::new(0));
        let slept = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| thread(&seats, &roused, &stopped, &sleeping));
            let guests: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..200 {
                            let _seat = seats.sit_down(Instant::now(), || false);
                            let rouse = || roused.store(true, Ordering::SeqCst);
                            let Some(_bed) = seats.lie_down(rouse) else { continue };
                            assert_eq!(sleeping.fetch_add(1, Ordering::SeqCst), 0);
                            slept.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            sleeping.fetch_sub(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            guests.into_iter().for_each(|guest| guest.join().unwrap());
            let back = Instant::now() + Duration::from_secs(10);
            while !seats.book().home {
                assert!(Instant::now() < back, "the thread stays out");
                std::thread::yield_now();
            }
            stopped.store(true, Ordering::SeqCst);
            seats.end();
        });
        assert!(slept.into_inner() > 0);
    }

    #[test]
    fn operations_under_way_call_the_thread_home_between_two_waits() {
        let seats = Seats::new();
        drop(seats.sit_down(Instant::now(), || false));
        // Soon after: the thread would stay out for a while.
        let seat = seats.sit_down(Instant::now(), || true);
        assert!(seats.book().again);
        std::thread::scope(|scope| {
            let out = scope.spawn(|| seats.stay_out(|| true));
            while seats.book().home {
                std::thread::yield_now();
            }
            drop(seat);
            assert!(out.join().unwrap());
        });
        assert!(seats.book().home);
    }
}
