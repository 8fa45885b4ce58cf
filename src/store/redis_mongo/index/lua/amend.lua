-- Jobs were changed by callbacks, alarms, cancels or replays. Removes each from its stream, leased or not, and queues it again if it waits for a
-- call or a poll.
-- ARGV: now, streams, depth, counts by (waiting, open, live, bytes), ring (1: others may have room now), then for each job: id, stream, tenant,
-- due_at (ms; -1: it waits for neither).
-- Gives 1; 0 while the index is lost: only the counts were changed then.
even_when_full()
local now, depth = tonumber(ARGV[1]), tonumber(ARGV[3])
count(4)
local name, is_open = epoch()
if not name then return 0 end
local rung = ARGV[8] == '1'
for i = 9, #ARGV, 4 do
  local id, next_stream, due_at = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local stream, entry = place(id)
  if entry then remove(stream, {{entry, id}}) end
  if due_at >= 0 then
    local straight, rings = enqueue(next_stream, ARGV[i + 2], due_at, now, is_open, depth - waiting(next_stream))
    if straight then add(next_stream, {id}) end
    rung = rung or rings
  end
end
if rung then ring(MAYBE) end
return 1
