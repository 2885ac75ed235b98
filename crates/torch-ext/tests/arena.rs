//! Tests of the arena of large tensors: blocks do not overlap, and freed blocks are merged and
//! reused.

use tch::{Device, Kind, Tensor};

/// Number of fp32 values in 1 MiB.
const MB: i64 = 1 << 18;

fn block(megabytes: i64) -> Tensor {
    Tensor::zeros([megabytes * MB], (Kind::Float, Device::Cpu))
}

fn address(t: &Tensor) -> usize {
    t.data_ptr() as usize
}

/// All checks are in one test, because allocations of a parallel test would change the addresses.
#[test]
fn blocks_do_not_overlap_and_free_blocks_merge() {
    let before = block(2);
    assert!(torch_ext::keep_freed_memory() && torch_ext::keep_freed_memory());
    // The tensors before and after the call, small and large, exist at the same time.
    let small = Tensor::ones([16], (Kind::Float, Device::Cpu));
    let blocks: Vec<Tensor> = (1..=8).map(block).collect();
    for (i, b) in blocks.iter().enumerate() {
        let _ = b.shallow_clone().fill_(i as f64 + 1.0);
    }
    for (i, b) in blocks.iter().enumerate() {
        let n = (i as i64 + 1) * MB;
        assert_eq!(b.sum(Kind::Double).double_value(&[]), (n * (i as i64 + 1)) as f64, "block {i} was overwritten");
        assert_eq!(address(b) % 64, 0);
    }
    let (first, last) = (address(&blocks[0]), address(&blocks[7]));
    assert!(first < last);
    // Free every second block, then the others. The free blocks must merge into one.
    let mut kept = Vec::new();
    for (i, b) in blocks.into_iter().enumerate() {
        if i % 2 == 0 { drop(b) } else { kept.push(b) }
    }
    drop(kept);
    let all = block(36);
    assert_eq!(address(&all), first, "eight adjacent free blocks are merged");
    drop(all);
    // Two allocations share a free block, and its remainder stays free.
    let (one, two) = (block(1), block(2));
    assert_eq!((address(&one), address(&two)), (first, first + 4 * MB as usize));
    drop((before, small));
    assert_eq!(address(&block(3)), first + 3 * 4 * MB as usize);
    // Threads allocate concurrently.
    let threads: Vec<_> = (0..4)
        .map(|t| {
            std::thread::spawn(move || {
                for i in 0..50 {
                    let b = block(1 + (i + t) % 5) + t as f64;
                    assert_eq!(b.max().double_value(&[]), t as f64);
                    assert_eq!(b.min().double_value(&[]), t as f64);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // An allocation that is too large for the arena is an error of libtorch.
    let too_much = Tensor::f_empty([1 << 50], (Kind::Float, Device::Cpu));
    assert!(too_much.is_err());
}
