-- Jobs were changed from outside: each leaves its stream, leased or not, and enters again if it waits for a call or a poll.
-- ARGV: now, lines, depth, counts by (waiting, open, live), ring (1: others may have room now), then for each job: id, line, tenant,
-- due_at (ms; -1: it waits for neither).
even_when_full()
local now, depth = tonumber(ARGV[1]), tonumber(ARGV[3])
count(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
local name, is_open = epoch()
if not name then return 0 end
local rung = ARGV[7] == '1'
for i = 8, #ARGV, 4 do
  local id, next_line, due_at = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local line, entry = place(id)
  if entry then remove(line, {{entry, id}}) end
  if due_at >= 0 then
    local straight, rings = enqueue(next_line, ARGV[i + 2], due_at, now, is_open, depth - waiting(next_line))
    if straight then add(next_line, {id}) end
    rung = rung or rings
  end
end
if rung then ring() end
return 1
