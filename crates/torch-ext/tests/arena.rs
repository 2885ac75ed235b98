//! Large tensors in the arena: their memory is theirs alone, comes back, and is the process's
//! for good.

use tch::{Device, Kind, Tensor};

const MB: i64 = 1 << 18; // fp32 values

fn block(megabytes: i64) -> Tensor {
    Tensor::zeros([megabytes * MB], (Kind::Float, Device::Cpu))
}

fn address(t: &Tensor) -> usize {
    t.data_ptr() as usize
}

/// One test: what is allocated elsewhere at the same time would move what this one looks at.
#[test]
fn blocks_are_apart_and_their_gaps_close() {
    let before = block(2);
    assert!(torch_ext::keep_freed_memory() && torch_ext::keep_freed_memory());
    // Blocks from before, small ones and large ones live side by side.
    let small = Tensor::ones([16], (Kind::Float, Device::Cpu));
    let blocks: Vec<Tensor> = (1..=8).map(block).collect();
    for (i, b) in blocks.iter().enumerate() {
        let _ = b.shallow_clone().fill_(i as f64 + 1.0);
    }
    for (i, b) in blocks.iter().enumerate() {
        let n = (i as i64 + 1) * MB;
        assert_eq!(b.sum(Kind::Double).double_value(&[]), (n * (i as i64 + 1)) as f64, "block {i} was written over");
        assert_eq!(address(b) % 64, 0);
    }
    let (first, last) = (address(&blocks[0]), address(&blocks[7]));
    assert!(first < last);
    // Every second one, then the others: the gaps between them become one, in which all fit.
    let mut kept = Vec::new();
    for (i, b) in blocks.into_iter().enumerate() {
        if i % 2 == 0 { drop(b) } else { kept.push(b) }
    }
    drop(kept);
    let all = block(36);
    assert_eq!(address(&all), first, "eight neighbouring gaps are one");
    drop(all);
    // A gap is shared, its rest stays a gap.
    let (one, two) = (block(1), block(2));
    assert_eq!((address(&one), address(&two)), (first, first + 4 * MB as usize));
    drop((before, small));
    assert_eq!(address(&block(3)), first + 3 * 4 * MB as usize);
    // From many threads.
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
    // What it has no room for is refused by libtorch as ever, in words.
    let too_much = Tensor::f_empty([1 << 50], (Kind::Float, Device::Cpu));
    assert!(too_much.is_err());
}
