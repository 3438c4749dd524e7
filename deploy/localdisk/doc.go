// Package localdisk makes a small disk for tests: an ext4 file system in an image, on a loop device, that can be filled
// up, made slow, and lose its power. It takes root and Linux; Possible tells.
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
