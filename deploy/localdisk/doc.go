// Package localdisk makes a small disk for tests: an ext4 file system in an image, on a loop device, that can be filled
// up, made slow, and lose its power. Needs says what it takes; Possible, whether that is there.
//
//	func TestMain(m *testing.M) {
//		if again, code := localdisk.Isolate(); again { // the mounts go with the process, however it ends
//			os.Exit(code)
//		}
//		os.Exit(m.Run())
//	}
//
//	d, err := localdisk.New(ctx, dir+"/disk.img", dir+"/disk")
//	if err != nil { ... }
//	defer d.Close()
package localdisk

// Needs is what a disk takes, for those who do without.
const Needs = "a disk of its own takes Linux, root, loop devices and mkfs.ext4"
