-- A job was changed from outside: it leaves its stream, whoever holds it, and enters anew if it wants to go.
-- ARGV: now, lines, depth, counts by (waiting, open, live, lanes), ring (1: others may have room now), id, then if it wants to go: line, tenant, due_at.
even_when_full()
local now, depth, id = tonumber(ARGV[1]), tonumber(ARGV[3]), ARGV[9]
count(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7])
local name, open_at = epoch()
if not name then return 0 end
local rung = ARGV[8] == '1'
local line, entry = place(id)
if entry then remove(line, {{entry, id}}) end
if ARGV[10] then
  local straight, tell = enqueue(ARGV[10], ARGV[11], tonumber(ARGV[12]), now, open_at, depth - waiting(ARGV[10]))
  if straight then add(ARGV[10], {id}) end
  rung = rung or tell
end
if rung then ring() end
return 1
