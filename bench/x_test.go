package bench
import ("testing";"github.com/klauspost/compress/zstd";"encoding/json")
func TestX(t *testing.T){
 z,_:=zstd.NewWriter(nil)
 for _,k:=range []*madeUpKind{madeUpPod,madeUpDeployment,madeUpConfigMap}{
  h:=newHistory(1,100,spaces(4),k); n,c:=0,0
  for range 1000{e:=h.next(); if !json.Valid(e.Object){t.Fatalf("%s",e.Object)}; n+=len(e.Object); c+=len(z.EncodeAll(e.Object,nil))}
  t.Log(k.info.Kind,n/1000,c/1000)
 }}
